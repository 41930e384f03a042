"""The namespace: everything that must match before two engines may exchange KV.

A namespace is a flat dict of facts; its digest names a directory and is written into every
chunk. ``meta.json`` in that directory holds the facts for people and ``lmkv doctor``.
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkv._version import __version__

FORMAT = 1
META_BYTES = 1 << 20  # of a meta.json, which has a few hundred

Fact = str | int | bool | Sequence[str]


@dataclass(frozen=True, slots=True)
class Namespace:
    """``facts`` in canonical form. Equal facts, in whatever order, are one namespace."""

    facts: Mapping[str, Fact]

    @property
    def digest(self) -> bytes:
        """32 bytes: SHA-256 of the canonical JSON of the facts and the format version."""
        text = json.dumps(
            {"format": FORMAT, **self.facts},
            sort_keys=True,
            separators=(",", ":"),
            default=list,
        )
        return hashlib.sha256(text.encode()).digest()

    @property
    def short(self) -> str:
        """The 16 hex digits that name the directory."""
        return self.digest.hex()[:16]

    def directory(self, root: str) -> Path:
        return Path(root) / "v1" / self.short

    def write_meta(
        self, root: str, about: Mapping[str, Fact] | None = None, file_mode: str = "private"
    ) -> OSError | None:
        """Write ``<root>/v1/<namespace>/meta.json`` unless it is there; blocks on the disk.

        ``about`` is for people only (where the model came from, say) and is no part of the
        namespace. ``file_mode`` as in :class:`lmkv.config.Config`. The file is complete whenever
        it is visible; one that is damaged is replaced. Returns what went wrong, if anything: KV is
        exchanged with or without it.
        """
        target = self.directory(root) / "meta.json"
        text = json.dumps(
            {
                "namespace": self.digest.hex(),
                "format": FORMAT,
                "facts": dict(sorted(self.facts.items())),
                "about": dict(about or {}),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "created_by": f"lmkv {__version__}",
            },
            indent=2,
            default=list,
        )
        try:
            if _stands(target):
                return None
            temporary_directory = target.parent / "tmp"
            for directory in (*reversed(temporary_directory.parents), temporary_directory):
                _make_directory(directory, file_mode)
            name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
            temporary = temporary_directory / name
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            opened = os.open(temporary, flags, 0o600)
            try:
                with open(opened, "w", encoding="utf-8") as file:
                    if file_mode == "group":
                        os.fchmod(opened, 0o660)
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(opened)  # written once, and read for months
                os.rename(temporary, target)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            return error
        return None


def load_meta(path: Path) -> dict[str, Any]:
    """What a ``meta.json`` says; empty if it is damaged.

    Raises OSError if it cannot be read, or is no file: no link is followed, no FIFO waited for.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(opened, encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(f"not a file: {path}")
        try:
            said = json.loads(file.read(META_BYTES))
        except (ValueError, RecursionError):
            return {}
    good = isinstance(said, dict) and all(isinstance(said.get(k), dict) for k in ("facts", "about"))
    return said if good else {}


def _stands(path: Path) -> bool:
    """Whether there is a meta.json to be left alone, or something in its place."""
    try:
        return bool(load_meta(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _make_directory(directory: Path, file_mode: str) -> None:
    """As the core makes them; what is there stays as it is."""
    try:
        directory.mkdir(mode=0o700)
    except OSError:
        if directory.is_dir():
            return
        raise
    if file_mode == "group":
        directory.chmod(0o2770)
