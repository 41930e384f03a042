#!/usr/bin/env bash
# What needs a CUDA device: the tests, and how fast and how harmless the copies are. About 6 minutes.
#   OUT=DIR   where gpu-transfer.json and .png go (default: build/gpu-check)
#   PYTHON=python3.12   with lmkv and torch in it: used as it is, where nothing can be fetched
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

if ! has_gpu; then
  say "make gpu-check: skipped, there is no CUDA device here (nvidia-smi lists none)"
  exit 0
fi
nvidia-smi -L
python=${PYTHON:-}
if [[ -z $python ]] || ! "$python" -c 'import lmkv._C, torch' 2>/dev/null; then
  scripts/setup.sh build engine
  use_venv
  python=python
fi
out=${OUT:-build/gpu-check}
mkdir -p "$out"
"$python" -c 'from lmkv.cli import app; app()' doctor
"$python" -m pytest -m gpu tests/gpu --durations=5 "$@"
"$python" benchmarks/gpu_transfer.py --json "$out/gpu-transfer.json" --png "$out/gpu-transfer.png"
say "numbers in $out"
