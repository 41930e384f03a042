"""What nvcc makes of the kernels: wide accesses, several in flight, nothing in local memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from cpp_build import ROOT

NVCC = shutil.which("nvcc")
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
VECTORS_IN_FLIGHT = 4  # kernels.cuh, kVectorsInFlight

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, to compile for GPUs")


def nvdisasm() -> Path:
    """NVIDIA's disassembler, which the package nvidia-cuda-nvdisasm brings."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    found = sorted(packages.glob("*/bin/nvdisasm"))
    assert found, "pip install nvidia-cuda-nvdisasm"
    return found[-1]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, list[str]]]:
    """What ptxas reports, and each kernel's accesses to memory in the order of the code."""
    cubin = tmp_path_factory.mktemp("cubin") / f"sm_{request.param}.cubin"
    command = [
        NVCC, "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-arch=sm_{request.param}", "-cubin",
        "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v",
        "-o", cubin, ROOT / "tests" / "kernels" / "kernels.cu",
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    code = subprocess.run(
        [nvdisasm(), "-c", cubin], capture_output=True, text=True, check=True
    ).stdout
    kernels: dict[str, list[str]] = {}
    for section in re.split(r"^\s*\.section\s+\.text\.", code, flags=re.MULTILINE)[1:]:
        name = section.split(",")[0].strip('"')
        kernels[name] = re.findall(r"\b((?:LD|ST)[GL]?\.[A-Z0-9.]+|LDL|STL)\b", section)
    return built.stderr, kernels


def test_registers_and_stack_stay_small(compiled: tuple[str, dict[str, list[str]]]) -> None:
    report, _ = compiled
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) == 2  # gather and scatter
    assert max(registers) <= 64
    spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
    assert len(spills) == 6
    assert set(spills) == {"0"}


def test_the_main_loop_moves_sixteen_bytes_at_a_time_and_several_at_once(
    compiled: tuple[str, dict[str, list[str]]],
) -> None:
    _, kernels = compiled
    assert len(kernels) == 2
    for accesses in kernels.values():
        assert not [access for access in accesses if access.startswith(("LDL", "STL"))]
        wide = [access for access in accesses if access.endswith(".128")]
        # Runs of loads, each followed by as many stores: what is between is on its way at once.
        runs = re.findall(r"(L+)(S+)", "".join("L" if a.startswith("LD") else "S" for a in wide))
        assert runs
        assert all(len(loads) == len(stores) == VECTORS_IN_FLIGHT for loads, stores in runs)
        # Evict-first: the bytes are used once.
        assert all(".EF" in access for access in wide)


def test_the_whole_device_compiles_without_a_warning_for_every_architecture(
    tmp_path: Path,
) -> None:
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [
        NVCC, "-std=c++20", "-O3", "--threads=0", f"-I{ROOT / 'csrc'}", *targets, "-c",
        "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror",
        "-o", tmp_path / "device.o", ROOT / "csrc" / "device" / "cuda_device.cu",
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
