"""What was measured of this machine's GPUs: found by ``lmkv bench transfer --calibrate``, kept in
the user's cache directory, and used by ``transfer=auto``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmkv._C import TransferOptions
from lmkv.errors import ConfigError

FORMAT = 1


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


def tuning_file() -> Path:
    """Where tunings are kept; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "lmkv" / "transfer.json"


def load_tuning(gpu: str) -> Tuning | None:
    """What was measured for GPUs of this name; None if nothing was, or it cannot be read.

    Reads one small file. A tuning is a matter of speed only, so that nothing here raises.
    """
    try:
        kept = _read()["gpus"][gpu]
        tuning = Tuning(**kept)
        tuning.options("auto")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuning


def save_tuning(gpu: str, tuning: Tuning) -> Path:
    """Keep ``tuning`` beside those of other GPUs. Raises OSError."""
    try:
        content = _read()
    except (OSError, ValueError, KeyError):
        content = {"format": FORMAT, "gpus": {}}
    content["gpus"][gpu] = asdict(tuning)
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
    if not isinstance(content.get("gpus"), dict):
        raise ConfigError("no GPUs")
    return content
