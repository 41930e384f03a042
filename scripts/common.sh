# Sourced by the other scripts: where things are, and how they speak.
# shellcheck shell=bash
set -Eeuo pipefail
shopt -s inherit_errexit
# No script ends without a word.
trap 'echo "[lmkv] failed: ${BASH_SOURCE[0]} line $LINENO: $BASH_COMMAND" >&2' ERR

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=$PWD/.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '[lmkv %4ds] %s\n' "$SECONDS" "$*"; }

die() {
  printf '[lmkv] error: %s\n' "$*" >&2
  exit 1
}

# The tools of .venv (cmake, ninja, clang-format, ...) before the system's.
use_venv() {
  [[ -x $VENV/bin/python ]] || die "there is no .venv yet: run 'make build'"
  export PATH="$VENV/bin:$PATH"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null; }
