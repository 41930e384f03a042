"""Builds the C++ tests, plain or under a sanitizer, and runs them. Once a session for each.

As a program it builds all of them, for CI, beside the tests that mostly wait. Whoever needs one
that is being built waits for it.
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]

SANITIZERS = {"plain": "", "address": "address", "thread": "thread"}

# A finding ends the program with this, so that it is not taken for a failed expectation.
SANITIZER_EXIT = 66
OPTIONS = {
    "ASAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:detect_leaks=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:halt_on_error=1:second_deadlock_stack=1",
}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command; its output is text, errors included."""
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


@functools.cache
def build(sanitizer: str) -> Path:
    """The build directory of all C++ tests under ``sanitizer`` ("address", "thread" or "")."""
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
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", str(directory)]):
            result = run(command)
            assert result.returncode == 0, result.stdout[-4000:]
    return directory


def fixed_addresses() -> list[str]:
    """Older ThreadSanitizers refuse the address randomisation of newer kernels."""
    command = ["setarch", platform.machine(), "-R"]
    # A container's seccomp profile may refuse it.
    usable = shutil.which("setarch") and run([*command, "true"]).returncode == 0
    return command if usable else []


def check(program: Path, sanitizer: str, report: Path, at_least: int, processes: int = 1) -> None:
    """Runs a gtest program; every one of its tests, and there are ``at_least`` so many, passes.

    ``processes`` share the tests: most of them wait for something most of the time.
    """
    prefix = fixed_addresses() if sanitizer == "thread" else []
    reports = [report.with_suffix(f".{index}.xml") for index in range(processes)]

    def shard(index: int) -> subprocess.CompletedProcess[str]:
        environment = {"GTEST_TOTAL_SHARDS": f"{processes}", "GTEST_SHARD_INDEX": f"{index}"}
        return subprocess.run(
            [*prefix, str(program), "--gtest_brief=1", f"--gtest_output=xml:{reports[index]}"],
            cwd=program.parent,  # on the disk that the build is on: O_DIRECT is tried for real
            env={**os.environ, **OPTIONS, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=600,
        )

    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(shard, range(processes)))
    for result in results:
        print(result.stdout[-2000:])
    for result in results:
        assert result.returncode == 0, result.stdout[-8000:]
    totals = [ElementTree.parse(each).getroot().attrib for each in reports]
    assert sum(int(each["tests"]) for each in totals) >= at_least
    assert sum(int(each["failures"]) + int(each["errors"]) for each in totals) == 0


if __name__ == "__main__":
    for each in SANITIZERS.values():
        print(f"built {build(each)}", flush=True)
