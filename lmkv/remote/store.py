"""What a remote tier's client can do, and where chunks lie in it."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from lmkv._C import RemoteResult
from lmkv.errors import ConfigError

# Formats of a namespace, as in a directory's tree.
FORMAT = "v1"

# Options whose values nobody may read in a log or a config: they belong in the environment.
_SECRET = re.compile(
    r"secret|password|passphrase|token|credential|(access|private|customer|client)_key"
)


class RemoteError(RuntimeError):
    """The remote tier refused, or was not reached; says why, and no secret."""


class Item(NamedTuple):
    """``bytes`` at ``address``, under ``name``: to be filled, or to be read."""

    name: str
    address: int
    bytes: int


Done = Callable[[Item, RemoteResult, str], None]


class RemoteStore(Protocol):
    """A client. Any thread may call, several at once; calls block, and keep the GIL only for
    microseconds at a time.
    """

    def register(self, address: int, size: int) -> None:
        """Where the buffers of all items will lie. Raises RemoteError."""

    def exists(self, names: Sequence[str]) -> list[bool]:
        """Raises RemoteError if that cannot be found out."""

    def get(self, items: Sequence[Item], done: Done) -> None:
        """Fill the items' buffers, each completely or not to be used. ``done`` is called once for
        each, from any thread, as soon as its buffer is left alone.
        """

    def put(self, items: Sequence[Item], done: Done) -> None:
        """As ``get``. What is there already stays: ``RemoteResult.THERE``."""

    def remove(self, name: str) -> RemoteResult:
        """Raises RemoteError."""

    def close(self) -> None:
        """Give everything back. Nothing may be under way."""


@dataclass(frozen=True)
class Place:
    """Where a remote tier is: ``"s3://bucket/prefix"``, ``"mooncake://host:port"``,
    ``"file:///directory"``, and its client's ``options``.
    """

    scheme: str
    host: str
    path: str  # without slashes around it, but a directory's
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str, options: Mapping[str, str] | None = None) -> "Place":
        """Raises ConfigError for what cannot be one."""
        parts = urlsplit(url)
        if parts.scheme not in {"s3", "mooncake", "file"}:
            raise ConfigError(
                "s3://bucket/prefix, mooncake://host:port or file:///directory, and not what is set"
            )
        if "@" in parts.netloc:
            raise ConfigError("credentials belong in the environment, not in the address")
        if parts.query or parts.fragment:
            raise ConfigError('options belong in "remote_options", not in the address')
        if parts.scheme == "file":
            if parts.netloc or not os.path.isabs(parts.path):
                raise ConfigError(f'a directory is named as file:///directory, not "{url}"')
            return cls("file", "", os.path.normpath(parts.path), options or {})
        if parts.scheme == "s3" and not parts.netloc:
            raise ConfigError(f'"{url}" names no bucket')
        for name, value in (options or {}).items():
            if _SECRET.search(name.lower()) or "@" in urlsplit(value).netloc:
                raise ConfigError(f"{name}: credentials belong in the environment")
        return cls(parts.scheme, parts.netloc, parts.path.strip("/"), options or {})

    def __str__(self) -> str:
        path = self.path if self.scheme == "file" else self.path and f"/{self.path}"
        return f"{self.scheme}://{self.host}{path}"

    @property
    def directory(self) -> str:
        """Of ``file://``; ``""`` of the others."""
        return self.path if self.scheme == "file" else ""

    def name_of(self, namespace: bytes, rank: int, key: bytes) -> str:
        """That of a chunk, which is the path of its file in a directory's tree."""
        digits = key.hex()
        name = f"{FORMAT}/{namespace.hex()[:16]}/r{rank}/{digits[:3]}/{digits}.kv"
        return f"{self.path}/{name}" if self.path else name


def open_store(place: Place) -> RemoteStore:
    """A client of the engine at ``place``, which is no directory. Raises RemoteError where it
    cannot be reached, ConfigError where its library is missing or an option cannot be.
    """
    if place.scheme == "s3":
        from lmkv.remote.s3 import S3Store  # its library is optional

        return S3Store(place)
    if place.scheme == "mooncake":
        from lmkv.remote.mooncake import MooncakeStore

        return MooncakeStore(place)
    raise ConfigError(f"{place} is a directory")
