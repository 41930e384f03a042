"""A remote tier through the whole core against its own client, interleaved in one run.

Chunks of random bytes go from one engine's slabs to the remote tier and back into another's,
verified and copied into a paged KV cache there. The client alone puts and gets as many bytes
in objects of the same size, with the same calls from as many threads, and looks at none of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from lmkv._C import Engine, EngineOptions, RemoteOptions, RemoteResult
from lmkv.bench.memory import HostMemory
from lmkv.remote.carriers import BATCH_BYTES, LOAD_THREADS, Carriers
from lmkv.remote.store import Item, Place, RemoteError, RemoteStore, open_store

MIB = 1 << 20
BLOCKS_PER_CHUNK = 16
START_SECONDS = 120.0
END_SECONDS = 600.0


class Host:
    """An engine with the remote tier, a directory in memory, and a paged cache."""

    def __init__(self, place: Place, chunk_bytes: int, chunks: int, namespace: bytes) -> None:
        block = chunk_bytes // BLOCKS_PER_CHUNK
        self._folder = Path(tempfile.mkdtemp(prefix="lmkv-bench-", dir="/dev/shm"))
        self.memory = HostMemory(block * BLOCKS_PER_CHUNK * chunks)
        self._said: list[str] = []
        self.engine = Engine(
            EngineOptions(
                root=str(self._folder),
                namespace=namespace,
                rank=0,
                segments=[(self.memory.address, block, block)],
                block_count=BLOCKS_PER_CHUNK * chunks,
                block_tokens=16,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
                # So that what is on its way is an eighth of it, at most.
                host_memory=8 * (chunks + 2) * (chunk_bytes + 8192),
                free_space_floor=0,
                remote=RemoteOptions(name=str(place), writes="write_through"),
            )
        )
        self.carriers = Carriers(
            self.engine,
            lambda: open_store(place),
            lambda key: place.name_of(namespace, 0, key),
            self._said.append,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.carriers.is_connected:
            if time.monotonic() > deadline or any(self._said):
                self.close()
                raise RemoteError(f"{place}: {self._said[-1] if self._said else 'no answer'}")
            time.sleep(0.005)

    def store(self, keys: Sequence[bytes]) -> float:
        """Seconds until the remote tier has all of them."""
        begin = time.perf_counter()
        for number, key in enumerate(keys):
            if not self.engine.store(key, 0, _blocks(number)):
                raise RuntimeError(f"a store was dropped: {self.engine.stats()}")
        self.drain()
        taken = time.perf_counter() - begin
        if self.engine.stats()["remote_chunks_stored"] != len(keys):
            raise RuntimeError(f"not all were put: {self.engine.stats()}")
        return taken

    def load(self, keys: Sequence[bytes]) -> float:
        """Seconds until all of them are in the paged cache."""
        before = self.engine.stats()["remote_hits"]
        begin = time.perf_counter()
        self.engine.load(
            [(k, 0, BLOCKS_PER_CHUNK, 0, _blocks(number)) for number, k in enumerate(keys)]
        )
        while not (ended := self.engine.poll()):
            time.sleep(0.0002)
        taken = time.perf_counter() - begin
        hits = self.engine.stats()["remote_hits"] - before
        if any(completion.failed_chunks for completion in ended) or hits != len(keys):
            raise RuntimeError(f"not all were got: {ended[0].error}")
        return taken

    def drain(self) -> None:
        if not self.engine.drain(END_SECONDS):
            raise RuntimeError(f"it does not end: {self.engine.stats()}")
        for completion in self.engine.poll():
            if completion.error:
                raise RuntimeError(completion.error)

    def close(self) -> None:
        self.carriers.stop()
        self.engine.close(END_SECONDS)
        self.carriers.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def _blocks(number: int) -> list[int]:
    return list(range(number * BLOCKS_PER_CHUNK, (number + 1) * BLOCKS_PER_CHUNK))


class Client:
    """The remote tier's own client, by itself."""

    def __init__(self, place: Place, object_bytes: int, objects: int) -> None:
        self._place, self._size = place, object_bytes
        self._memory = HostMemory(object_bytes * objects)
        self._store: RemoteStore = open_store(place)
        self._store.register(self._memory.address, self._memory.bytes_total)

    def items(self, keys: Sequence[bytes]) -> list[Item]:
        """Of so many keys, in memory one behind the other."""
        return [
            Item(f"bench/{key.hex()}", self._memory.address + number * self._size, self._size)
            for number, key in enumerate(keys)
        ]

    def put(self, items: Sequence[Item]) -> float:
        """Seconds. One thread, as the core's stores have."""
        return self._carry(self._store.put, items, 1)

    def get(self, items: Sequence[Item]) -> float:
        """Seconds. As many threads as the core's loads have."""
        return self._carry(self._store.get, items, LOAD_THREADS)

    def _carry(self, call: Callable[..., None], items: Sequence[Item], threads: int) -> float:
        failed: list[str] = []

        def done(item: Item, result: RemoteResult, why: str) -> None:
            if result is not RemoteResult.DONE:
                failed.append(f"{item.name}: {result.name} {why}")

        per_batch = max(1, BATCH_BYTES // self._size)
        batches = [items[at : at + per_batch] for at in range(0, len(items), per_batch)]
        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for outcome in [pool.submit(call, batch, done) for batch in batches]:
                outcome.result()
        taken = time.perf_counter() - begin
        if failed:
            raise RuntimeError(failed[0])
        return taken

    def remove(self, items: Iterable[Item]) -> None:
        for item in items:
            self._store.remove(item.name)

    def close(self) -> None:
        self._store.close()


def measure(
    place: Place,
    *,
    chunk_bytes: int,
    chunks: int,
    rounds: int,
    singles: int,
    each: Callable[[str, dict[str, Any]], None] = lambda way, row: None,  # noqa: ARG005
) -> dict[str, Any]:
    """``rounds`` of ``chunks`` chunks each way, in turn with the client, and ``singles`` loads of
    one chunk, each in turn with one get; the first of each is not counted. Leaves nothing there.

    Raises RemoteError if the tier cannot be reached, RuntimeError if a chunk does not arrive.
    """
    fresh = (os.urandom(32) for _ in count())
    namespace = os.urandom(32)
    ours: dict[str, list[float]] = {"put": [], "get": []}
    theirs: dict[str, list[float]] = {"put": [], "get": []}
    object_bytes = chunk_bytes + 4096  # a chunk's file has a header page
    client = Client(place, object_bytes, chunks)
    try:
        for number in range(rounds + 1):
            keys = [next(fresh) for _ in range(chunks)]
            items = client.items([next(fresh) for _ in range(chunks)])
            writer = Host(place, chunk_bytes, chunks, namespace)
            reader = Host(place, chunk_bytes, chunks, namespace)
            try:
                # Whoever begins has the other's turn next.
                pairs = (
                    ("put", partial(writer.store, keys), partial(client.put, items)),
                    ("get", partial(reader.load, keys), partial(client.get, items)),
                )
                for way, our, their in pairs:
                    turns = ((our, ours[way]), (their, theirs[way]))
                    for call, seconds in turns if number % 2 else reversed(turns):
                        taken = call()
                        if number:
                            seconds.append(taken)
                _compare(writer, reader)
            finally:
                writer.close()
                reader.close()
                client.remove(items)
                client.remove(Item(place.name_of(namespace, 0, k), 0, 0) for k in keys)
        result: dict[str, Any] = {
            way: _rates(ours[way], theirs[way], object_bytes * chunks) for way in ours
        }
        result["latency"] = _latency(place, client, namespace, fresh, chunk_bytes, singles)
    finally:
        client.close()
    for way in ours:
        each(way, result[way])
    return {
        "place": place.scheme,
        "chunk_bytes": object_bytes,
        "chunks": chunks,
        "rounds": rounds,
        "cores": os.cpu_count(),
        **result,
    }


def _compare(writer: Host, reader: Host) -> None:
    size = writer.memory.bytes_total
    sides = [ctypes.string_at(host.memory.address, size) for host in (writer, reader)]
    if sides[0] != sides[1]:
        raise RuntimeError("what was loaded is not what was stored")


def _rates(ours: list[float], theirs: list[float], size: int) -> dict[str, Any]:
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {
        "gbps": size / statistics.median(ours) / 1e9,
        "client_gbps": size / statistics.median(theirs) / 1e9,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def _latency(
    place: Place,
    client: Client,
    namespace: bytes,
    fresh: Iterable[bytes],
    chunk_bytes: int,
    singles: int,
) -> dict[str, Any]:
    """Milliseconds of one chunk at a time."""
    keys = [key for key, _ in zip(fresh, range(singles + 1), strict=False)]
    writer = Host(place, chunk_bytes, 1, namespace)
    reader = Host(place, chunk_bytes, 1, namespace)
    items = client.items([keys[0]])
    ours, theirs = [], []
    try:
        client.put(items)
        for key in keys:
            writer.engine.store(key, 0, _blocks(0))
            writer.drain()
            ours.append(reader.load([key]))
            theirs.append(client.get(items))
            reader.drain()
    finally:
        writer.close()
        reader.close()
        client.remove(items)
        client.remove(Item(place.name_of(namespace, 0, key), 0, 0) for key in keys)
    return {"get": _percentiles(ours[1:]), "client_get": _percentiles(theirs[1:])}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": statistics.median(ordered) * 1e3,
        "p99_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3,
    }
