"""The namespace: everything that must match before two engines may exchange KV.

A namespace is a flat dict of facts; its digest names a directory and is written into every
chunk. ``meta.json`` in that directory holds the facts for people and ``lmkv doctor``.
"""

import errno
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
from typing import Any

from lmkv._version import __version__

FORMAT = 1
META = "meta.json"
META_BYTES = 1 << 20  # of it; it has a few hundred

Fact = str | int | bool | Sequence[str]


@contextmanager
def entered(root: str, *names: str, make: str = "") -> Iterator[int]:
    """A descriptor of a directory below ``root``, for ``dir_fd``; no link below it is followed.

    ``make`` makes what is missing, with that ``file_mode``. Blocks on the disk. Raises OSError.
    """
    place = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        for name in names:
            if make:
                _make_directory(name, place, make)
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            outer, place = place, os.open(name, flags, dir_fd=place)
            os.close(outer)
        yield place
    finally:
        os.close(place)


def _make_directory(name: str, place: int | None, file_mode: str) -> None:
    """As the core makes them; what is there stays as it is."""
    try:
        os.mkdir(name, 0o700, dir_fd=place)
    except OSError:
        if os.access(name, os.F_OK, dir_fd=place):
            return
        raise
    if file_mode == "group":
        opened = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
        try:
            os.fchmod(opened, 0o2770)
        finally:
            os.close(opened)


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
        """Write ``<root>/v1/<namespace>/meta.json`` unless that file is there; blocks on the disk.

        ``about`` is for people only (where the model came from, say) and is no part of the
        namespace. ``file_mode`` as in :class:`lmkv.config.Config`. The file is complete whenever
        it is visible; one that is damaged is replaced, and so is what is no file. Returns what
        went wrong, if anything: KV is exchanged with or without it.
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
            Path(root).parent.mkdir(parents=True, exist_ok=True)
            _make_directory(root, None, file_mode)
            with entered(root, "v1", self.short, make=file_mode) as place:
                if not _stands(place):
                    self._publish(root, place, text + "\n", file_mode)
        except OSError as error:
            return error
        return None

    def _publish(self, root: str, place: int, text: str, file_mode: str) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with entered(root, "v1", self.short, "tmp", make=file_mode) as temporary:
            opened = os.open(name, flags, 0o600, dir_fd=temporary)
            try:
                with open(opened, "w", encoding="utf-8") as file:
                    if file_mode == "group":
                        os.fchmod(opened, 0o660)
                    file.write(text)
                    file.flush()
                    os.fsync(opened)  # written once, and read for months
                os.rename(name, META, src_dir_fd=temporary, dst_dir_fd=place)
            except OSError:
                with suppress(OSError):
                    os.unlink(name, dir_fd=temporary)
                raise


def load_meta(place: int) -> dict[str, Any]:
    """What the ``meta.json`` in the directory ``place`` says; empty if it is damaged.

    Raises OSError if it cannot be read, or is no file: no link is followed, no FIFO waited for, no
    device opened. Of what it says only text, numbers and lists of text are taken.
    """
    if not stat.S_ISREG(os.stat(META, dir_fd=place, follow_symlinks=False).st_mode):
        raise FileNotFoundError(errno.ENOENT, "no file", META)
    opened = os.open(META, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=place)
    with open(opened, encoding="utf-8") as file:
        try:
            said = json.loads(file.read(META_BYTES))
        except (ValueError, RecursionError):
            return {}
    if not isinstance(said, dict):
        return {}
    facts, about = said.get("facts"), said.get("about")
    if not isinstance(facts, dict) or not isinstance(about, dict):
        return {}
    return _flat(said) | {"facts": _flat(facts), "about": _flat(about)}


def _flat(said: dict[str, Any]) -> dict[str, Any]:
    def is_fact(value: object) -> bool:
        if isinstance(value, list):
            return all(isinstance(one, str) for one in value)
        return isinstance(value, str | int)

    return {name: value for name, value in said.items() if is_fact(value)}


def _stands(place: int) -> bool:
    """Whether there is a meta.json to be left alone: a whole one, or one that we may not read."""
    try:
        return bool(load_meta(place))
    except FileNotFoundError:
        return False
    except OSError:
        return True
