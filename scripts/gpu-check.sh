#!/usr/bin/env bash
# The tests that need a CUDA device, with the reasons of those skipped.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

has_gpu || die "no CUDA device here (nvidia-smi lists none): nothing that make gpu-check could check"
nvidia-smi -L
scripts/setup.sh build engine
use_venv
lmkv doctor
exec scripts/test.sh -m gpu "$@"
