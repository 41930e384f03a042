#!/usr/bin/env bash
# One pytest run over everything, so that its closing line counts everything.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
use_venv

# Engines started by tests talk to nobody outside.
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

exec python -m pytest --durations=15 "$@"
