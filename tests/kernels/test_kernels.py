"""The GPU device and its kernels, compiled for the host over an emulated GPU (emulated_gpu/)."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpp_build import SANITIZERS, build, check


@pytest.mark.sanitizer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizer", SANITIZERS.values(), ids=SANITIZERS)
def test_kernels_and_gpu_device(sanitizer: str, tmp_path: Path) -> None:
    program = build(sanitizer) / "tests" / "kernels" / "lmkv_kernel_tests"
    check(program, sanitizer, tmp_path / "result.xml", at_least=45, processes=2)
