#!/usr/bin/env bash
# fuzz.sh SECONDS: builds the fuzz targets (tests/fuzz) and runs each for its share of that time; 0
# builds them only. Two of these at once are safe.
# Ends with 1, and the path of the input, if one of them finds something. What it learns stays in
# build/fuzz/corpus, and the next run goes on from there.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
use_venv

BUILD=build/fuzz
# What is fuzzed, and how many parts of the time it gets.
declare -A SHARES=([chunk]=5 [names]=2 [fault_spec]=1 [lease]=2)

clang() {
  local name
  for name in clang++ clang++-{19,18,17,16,15,14}; do
    command -v "$name" >/dev/null || continue
    if echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
      "$name" -x c++ -fsanitize=fuzzer,address -o /dev/null - 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  die "no clang with libFuzzer here: install clang and its compiler-rt (clang-14 and libclang-rt-14-dev)"
}

build_targets() {
  local compiler log=$BUILD/build.log rc=0
  compiler=$(clang)
  {
    cmake -S . -B "$BUILD" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DLMKV_BUILD_FUZZERS=ON \
      -DLMKV_BUILD_PYTHON=OFF -DLMKV_CUDA=OFF -DLMKV_WERROR=ON &&
      cmake --build "$BUILD" --target lmkv_fuzzers
  } >"$log" 2>&1 || rc=$?
  ((rc == 0)) || {
    tail -n 40 "$log" >&2
    die "the fuzz targets cannot be built: $log"
  }
}

# run_target NAME SECONDS: one line that says how much was tried, or what was found.
run_target() {
  local name=$1 seconds=$2 log=$BUILD/$1.log rc=0 memory=/tmp scratch
  mkdir -p "$BUILD/corpus/$name" "$BUILD/found"
  [[ ! -d /dev/shm ]] || memory=/dev/shm
  scratch=$(mktemp -d "$memory/lmkv-fuzz-XXXXXX")
  TMPDIR=$scratch "$BUILD/tests/fuzz/fuzz_$name" "$BUILD/corpus/$name" "tests/fuzz/corpus/$name" \
    -dict="tests/fuzz/$name.dict" -artifact_prefix="$BUILD/found/$name-" -max_len=2048 \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    >"$log" 2>&1 || rc=$?
  rm -rf "$scratch"
  if ((rc != 0)); then
    tail -n 40 "$log" >&2
    say "fuzz $name: FOUND (status $rc): $(grep -o 'Test unit written to .*' "$log" || echo "see $log")"
    return 1
  fi
  say "fuzz $name: clean, $(grep -oP 'number_of_executed_units: \K\d+' "$log") inputs in $seconds s," \
    "$(grep -oP 'DONE.*\K(cov: \d+ ft: \d+ corp: \d+)' "$log")"
}

# The tests build them, too, perhaps at the same time.
locked() {
  exec 8>"$BUILD/lock"
  flock 8
  "$@"
  exec 8>&-
}

main() {
  local total=${1:-} name seconds parts=0 failed=0
  [[ $total =~ ^[0-9]+$ ]] || die "usage: fuzz.sh SECONDS"
  mkdir -p "$BUILD"
  # LMKV_FUZZ_BUILT=yes: they are there already (for the test of this script).
  [[ -n ${LMKV_FUZZ_BUILT:-} ]] || locked build_targets
  ((total > 0)) || return 0
  for name in "${!SHARES[@]}"; do parts=$((parts + SHARES[$name])); done
  for name in chunk names fault_spec lease; do
    seconds=$((total * SHARES[$name] / parts))
    run_target "$name" $((seconds > 0 ? seconds : 1)) || failed=1
  done
  return "$failed"
}

main "$@"
