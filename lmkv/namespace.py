"""The namespace: everything that must match before two engines may exchange KV.

A namespace is a flat dict of facts; its digest names a directory and is written into every
chunk. ``meta.json`` in that directory holds the facts for people and ``lmkv doctor``.
"""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmkv._version import __version__

FORMAT = 1

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
        it is visible. Returns what went wrong, if anything: KV is exchanged with or without it.
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
            if target.exists():
                return None
            temporary_directory = target.parent / "tmp"
            for directory in (*reversed(temporary_directory.parents), temporary_directory):
                _make_directory(directory, file_mode)
            name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
            temporary = temporary_directory / name
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                if file_mode == "group":
                    os.fchmod(file.fileno(), 0o660)
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())  # on a network filesystem another host may read it at once
            os.rename(temporary, target)
        except OSError as error:
            return error
        return None


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
