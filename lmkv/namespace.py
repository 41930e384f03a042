"""The namespace: everything that must match before two engines may exchange KV.

A namespace is a flat dict of facts; its digest names a directory and is written into every
chunk. ``meta.json`` in that directory holds the facts for people and ``lmkv doctor``.
"""

import hashlib
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lmkv._version import __version__

FORMAT = 1

Fact = str | int | bool | Sequence[str]


META = "meta.json"


@contextmanager
def entered(root: str, *names: str, make: bool = False) -> Iterator[int]:
    """A descriptor of a directory below ``root``, for ``dir_fd``; no link below it is followed.

    ``make`` makes what is missing. Blocks on the disk. Raises OSError.
    """
    place = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        for name in names:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=place)
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            outer, place = place, os.open(name, flags, dir_fd=place)
            os.close(outer)
        yield place
    finally:
        os.close(place)


def is_file(name: str, place: int) -> bool:
    """Whether ``name`` in the directory ``place`` is a file, and no link, FIFO or device."""
    with suppress(OSError):
        return stat.S_ISREG(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
    return False


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

    def write_meta(self, root: str, about: Mapping[str, Fact] | None = None) -> OSError | None:
        """Write ``<root>/v1/<namespace>/meta.json`` unless that file is there; blocks on the disk.

        ``about`` is for people only (where the model came from, say) and is no part of the
        namespace. The file is complete whenever it is visible. Returns what went wrong, if
        anything: KV is exchanged with or without it.
        """
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
            Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
            with entered(root, "v1", self.short, make=True) as place:
                if not is_file(META, place):
                    self._publish(root, place, text + "\n")
        except OSError as error:
            return error
        return None

    def _publish(self, root: str, place: int, text: str) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with entered(root, "v1", self.short, "tmp", make=True) as temporary:
            opened = os.open(name, flags, 0o600, dir_fd=temporary)
            with open(opened, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(name, META, src_dir_fd=temporary, dst_dir_fd=place)
