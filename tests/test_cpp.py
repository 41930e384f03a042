"""The C++ core's own tests, built and run plain and under the sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A finding ends the program with this, so that it is not taken for a failed expectation.
SANITIZER_EXIT = 66
OPTIONS = {
    "ASAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:detect_leaks=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:halt_on_error=1:second_deadlock_stack=1",
}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def build(sanitizer: str) -> Path:
    directory = ROOT / "build" / f"cpp-{sanitizer or 'plain'}"
    configure = [
        "cmake",
        f"-S{ROOT}",
        f"-B{directory}",
        "-GNinja",
        "-DLMKV_BUILD_TESTS=ON",
        "-DLMKV_BUILD_PYTHON=OFF",
        "-DLMKV_CUDA=OFF",
        f"-DLMKV_SANITIZER={sanitizer}",
        "-DLMKV_WERROR=ON",
        # Assertions on, optimised enough to race.
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
    ]
    for command in (configure, ["cmake", "--build", str(directory)]):
        result = run(command)
        assert result.returncode == 0, result.stdout[-4000:]
    return directory / "tests" / "cpp" / "lmkv_tests"


def fixed_addresses() -> list[str]:
    """Older ThreadSanitizers refuse the address randomisation of newer kernels."""
    command = ["setarch", platform.machine(), "-R"]
    # A container's seccomp profile may refuse it.
    usable = shutil.which("setarch") and run([*command, "true"]).returncode == 0
    return command if usable else []


@pytest.mark.sanitizer
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizer", ["", "address", "thread"], ids=["plain", "address", "thread"])
def test_cpp_core(sanitizer: str, tmp_path: Path) -> None:
    tests = build(sanitizer)
    prefix = fixed_addresses() if sanitizer == "thread" else []
    work = tests.parent  # on the disk that the build is on: O_DIRECT is tried for real
    result = subprocess.run(
        [*prefix, str(tests), "--gtest_brief=1", f"--gtest_output=xml:{tmp_path}/result.xml"],
        cwd=work,
        env={**os.environ, **OPTIONS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=600,
    )
    print(result.stdout[-2000:])
    assert result.returncode == 0, result.stdout[-8000:]
    report = ElementTree.parse(tmp_path / "result.xml").getroot()
    assert int(report.attrib["tests"]) > 100
    assert int(report.attrib["failures"]) + int(report.attrib["errors"]) == 0
