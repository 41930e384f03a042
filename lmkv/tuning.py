"""What was measured of this machine: kept in the user's cache directory.

``lmkv bench transfer --calibrate`` finds how a kind of GPU copies best, used by ``transfer=auto``;
``lmkv bench io --calibrate`` how many bytes a disk wants in flight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmkv._C import TransferOptions
from lmkv.errors import ConfigError

FORMAT = 1
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Thresholds for one kind of GPU. The defaults are derived in docs/gpu-transfer.md.

    Fragments of at least ``..._copy_engine_from`` bytes go by copy engine, smaller ones by the
    kernel mode ``..._below`` (``kernel_staged`` or ``kernel_mapped``), which takes at most
    ``thread_blocks`` SMs.
    """

    gather_copy_engine_from: int = 32 << 10
    gather_below: str = "kernel_staged"
    scatter_copy_engine_from: int = 32 << 10
    scatter_below: str = "kernel_staged"
    thread_blocks: int = 8

    def options(self, mode: str) -> TransferOptions:
        """The core's options with this tuning. Raises ConfigError for values that cannot be."""
        return TransferOptions(mode=mode, **asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """Bytes in flight at one disk, each way. The defaults suit a local SSD (docs/io.md)."""

    load_depth: int = 64 * MIB
    store_depth: int = 32 * MIB

    def __post_init__(self) -> None:
        depths: tuple[object, ...] = (self.load_depth, self.store_depth)  # as a file had them
        for depth in depths:
            if not isinstance(depth, int) or not MIB <= depth <= 1 << 40:
                raise ConfigError(f"a depth must be from 1 MiB to 1 TiB, not {depth!r}")


def tuning_file() -> Path:
    """Where measurements are kept; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "lmkv" / "tuning.json"


def load_tuning(gpu: str) -> Tuning | None:
    """What was measured for GPUs of this name; None if nothing was, or it cannot be read.

    Reads one small file. A tuning is a matter of speed only, so that nothing here raises.
    """
    try:
        tuning = Tuning(**_read()["gpus"][gpu])
        tuning.options("auto")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuning


def save_tuning(gpu: str, tuning: Tuning) -> Path:
    """Keep ``tuning`` beside what else was measured. Raises OSError."""
    return _save("gpus", gpu, asdict(tuning))


def load_depths(path: str) -> Depths | None:
    """What was measured of the disk that ``path`` is on; else as ``load_tuning``."""
    try:
        return Depths(**_read()["disks"][mount_of(path)])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def depths_of(paths: Iterable[str]) -> Depths:
    """The largest depths that were measured of any of these directories' disks, or the defaults:
    directories that chunks are spread over are mostly of one kind.
    """
    measured = [depths for path in paths if (depths := load_depths(path)) is not None]
    if not measured:
        return Depths()
    return Depths(
        load_depth=max(depths.load_depth for depths in measured),
        store_depth=max(depths.store_depth for depths in measured),
    )


def save_depths(path: str, depths: Depths) -> Path:
    """Keep ``depths`` for everything on the disk that ``path`` is on. Raises OSError."""
    return _save("disks", mount_of(path), asdict(depths))


def mount_of(path: str) -> str:
    """The mount point above ``path``, which need not exist yet."""
    real = os.path.realpath(path)
    while not os.path.ismount(real):
        real = os.path.dirname(real)
    return real


def _save(kind: str, name: str, value: dict[str, Any]) -> Path:
    try:
        content = _read()
    except (OSError, ValueError, KeyError):
        content = {"format": FORMAT}
    content.setdefault(kind, {})[name] = value
    path = tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _read() -> dict[str, Any]:
    content = json.loads(tuning_file().read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError("another format")
    for kind in ("gpus", "disks"):
        if not isinstance(content.get(kind, {}), dict):
            raise ConfigError(f"no {kind}")
    return content
