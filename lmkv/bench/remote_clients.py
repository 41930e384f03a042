"""The clients of remote engines by themselves, called as their own documentation shows: what there
is to have of a remote tier without lmkv.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lmkv.bench.memory import HostMemory
from lmkv.remote.store import Place, RemoteError


class Client(Protocol):
    """Objects of one size, from and to memory of its own. Raises RemoteError."""

    def put(self, names: Sequence[str]) -> float:
        """Seconds until all are there; none was."""

    def get(self, names: Sequence[str]) -> float:
        """Seconds until all are here."""

    def close(self) -> None:
        """Give everything back."""


class S3Client:
    """obstore: all objects at once, each by one request."""

    def __init__(self, place: Place, object_bytes: int, objects: int) -> None:
        import obstore

        from lmkv.remote.s3 import object_store

        self._obstore: Any = obstore
        self._store = object_store(place)
        self._size = object_bytes
        self._memory = HostMemory(object_bytes * objects)

    def put(self, names: Sequence[str]) -> float:
        content = memoryview(self._memory.content)

        async def put(number: int, name: str) -> None:
            body = content[number * self._size : (number + 1) * self._size]
            await self._obstore.put_async(self._store, name, body, use_multipart=False)

        return self._timed(put, names)

    def get(self, names: Sequence[str]) -> float:
        got: list[Any] = []  # kept as long as it lasts, as by somebody who wants it

        async def get(_: int, name: str) -> None:
            answer = await self._obstore.get_async(self._store, name)
            got.append(await answer.bytes_async())

        taken = self._timed(get, names)
        if any(len(one) != self._size for one in got):
            raise RemoteError("an object has another size")
        return taken

    def _timed(self, call: Any, names: Sequence[str]) -> float:
        async def all_of_them() -> None:
            await asyncio.gather(*(call(number, name) for number, name in enumerate(names)))

        begin = time.perf_counter()
        asyncio.run(all_of_them())
        return time.perf_counter() - begin

    def close(self) -> None:
        """Nothing to do: connections go with the object."""


class MooncakeClient:
    """One batch of all objects, from and to memory that is registered."""

    def __init__(self, place: Place, object_bytes: int, objects: int) -> None:
        from lmkv.remote.mooncake import connect

        self._client, self._replicas = connect(place)
        self._size = object_bytes
        self._memory = HostMemory(object_bytes * objects)
        if self._client.register_buffer(self._memory.address, self._memory.bytes_total):
            raise RemoteError("memory was not registered")

    def put(self, names: Sequence[str]) -> float:
        return self._timed(self._client.batch_put_from, names, 0, self._replicas)

    def get(self, names: Sequence[str]) -> float:
        return self._timed(self._client.batch_get_into, names, self._size)

    def _timed(self, call: Any, names: Sequence[str], answer: int, *more: Any) -> float:
        addresses = [self._memory.address + number * self._size for number in range(len(names))]
        sizes = [self._size] * len(names)
        begin = time.perf_counter()
        answers = call(list(names), addresses, sizes, *more)
        taken = time.perf_counter() - begin
        if answers != [answer] * len(names):
            raise RemoteError(f"not all objects were moved: {answers}")
        return taken

    def close(self) -> None:
        self._client.unregister_buffer(self._memory.address)
        self._client.close()


def open_client(place: Place, object_bytes: int, objects: int) -> Client:
    """For so many objects at once, at most. Raises RemoteError, ConfigError."""
    kinds: dict[str, Callable[[Place, int, int], Client]] = {
        "s3": S3Client,
        "mooncake": MooncakeClient,
    }
    return kinds[place.scheme](place, object_bytes, objects)
