#!/usr/bin/env bash
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

rm -rf build dist site ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis lmkv/_C*.so "$VENV/.stamps/build"
find csrc lmkv tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
