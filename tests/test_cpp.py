"""The C++ core's own tests, built and run plain and under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpp_build import SANITIZERS, build, check


@pytest.mark.sanitizer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizer", SANITIZERS.values(), ids=SANITIZERS)
def test_cpp_core(sanitizer: str, tmp_path: Path) -> None:
    program = build(sanitizer) / "tests" / "cpp" / "lmkv_tests"
    check(program, sanitizer, tmp_path / "result.xml", at_least=700, processes=4)
