#!/usr/bin/env bash
# lint.sh [--fix] [tool ...]: all tools, or the named ones; goes on after a failure, then says which.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
use_venv

cpp_sources() {
  local -a roots=()
  local root
  for root in csrc tests benchmarks; do [[ -d $root ]] && roots+=("$root"); done
  find "${roots[@]}" \( -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' \) -print0 | sort -z
}

check_ruff() { ruff check . && ruff format --check .; }
check_mypy() { mypy; }
check_clang-format() { cpp_sources | xargs -0 -r clang-format --dry-run -Werror; }
check_codespell() { codespell; }
check_shellcheck() { shellcheck -x scripts/*.sh .ci/run; }
check_hadolint() { hadolint deploy/Dockerfile; }
# A source that .gitignore hides works here and is missing from every clone.
check_gitignore() {
  local ignored hidden
  ignored=$(git ls-files --others --ignored --exclude-standard -- scripts csrc lmkv tests benchmarks deploy)
  hidden=$(grep -E '\.(py|sh|cpp|hpp|cu|cuh)$' <<<"$ignored") || return 0
  printf 'hidden by .gitignore:\n%s\n' "$hidden"
  return 1
}
check_compose() { check-jsonschema --builtin-schema vendor.compose-spec deploy/*.yml; }

fix_ruff() { ruff check --fix . && ruff format .; }
fix_clang-format() { cpp_sources | xargs -0 -r clang-format -i; }

verb=check
tools=(gitignore ruff mypy clang-format codespell shellcheck hadolint compose)
if [[ ${1:-} == --fix ]]; then
  verb=fix
  tools=(ruff clang-format)
  shift
fi
if (($#)); then tools=("$@"); fi

failed=()
for tool in "${tools[@]}"; do
  declare -F "${verb}_$tool" >/dev/null || die "unknown tool '$tool'"
  say "$tool"
  # In a shell of its own: `set -e` would not hold inside a condition.
  rc=0
  ("${verb}_$tool") || rc=$?
  ((rc == 0)) || failed+=("$tool")
done
((${#failed[@]} == 0)) || die "${failed[*]}: see above ('make format' applies what a tool can fix)"
say "lint: all clean"
