"""A remote tier through the whole core against its own client, interleaved in one run.

Chunks of random bytes go from one engine's slabs to the remote tier and back into another's,
verified and copied into a paged KV cache there. The engine's own client, used as its documentation
shows (``remote_clients.py``), puts and gets as many bytes in objects of the same size, and looks at
none of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from lmkv._C import Engine, EngineOptions, RemoteOptions
from lmkv.bench.memory import HostMemory
from lmkv.bench.remote_clients import Client, open_client
from lmkv.remote.carriers import Carriers
from lmkv.remote.store import Place, RemoteError, RemoteStore, open_store

MIB = 1 << 20
BLOCKS_PER_CHUNK = 16
START_SECONDS = 120.0
END_SECONDS = 600.0

Closes = TypeVar("Closes", "Host", Client, RemoteStore)


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
    with ExitStack() as ends:
        remover = _closing(ends, open_store(place))
        client = _closing(ends, open_client(place, object_bytes, chunks))
        for number in range(rounds + 1):
            keys = [next(fresh) for _ in range(chunks)]
            names = [_name_of_client(place, next(fresh)) for _ in range(chunks)]
            with ExitStack() as ends_of_round:
                _removed(ends_of_round, remover, names)
                ours_too = [place.name_of(namespace, 0, key) for key in keys]
                _removed(ends_of_round, remover, ours_too)
                writer, reader = (
                    _closing(ends_of_round, Host(place, chunk_bytes, chunks, namespace))
                    for _ in range(2)
                )
                # Whoever begins has the other's turn next.
                pairs = (
                    ("put", partial(writer.store, keys), partial(client.put, names)),
                    ("get", partial(reader.load, keys), partial(client.get, names)),
                )
                for way, our, their in pairs:
                    turns = ((our, ours[way]), (their, theirs[way]))
                    for call, seconds in turns if number % 2 else reversed(turns):
                        taken = call()
                        if number:
                            seconds.append(taken)
                _compare(writer, reader)
        result: dict[str, Any] = {
            way: _rates(ours[way], theirs[way], object_bytes * chunks) for way in ours
        }
        keys = [next(fresh) for _ in range(singles + 1)]
        name = _name_of_client(place, next(fresh))
        _removed(ends, remover, [name, *(place.name_of(namespace, 0, key) for key in keys)])
        client.put([name])
        hosts = [_closing(ends, Host(place, chunk_bytes, 1, namespace)) for _ in range(2)]
        result["latency"] = _latency(hosts[0], hosts[1], partial(client.get, [name]), keys)
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


def _closing(ends: ExitStack, one: Closes) -> Closes:
    ends.callback(one.close)
    return one


def _removed(ends: ExitStack, store: RemoteStore, names: Sequence[str]) -> None:
    for name in names:
        ends.callback(store.remove, name)


def _name_of_client(place: Place, key: bytes) -> str:
    """Below the place's own prefix, which may be all that its credentials reach."""
    return f"{place.path or 'lmkv'}/bench/{key.hex()}"


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
    writer: Host, reader: Host, get: Callable[[], float], keys: Sequence[bytes]
) -> dict[str, Any]:
    """Milliseconds of one chunk at a time."""
    ours, theirs = [], []
    for key in keys:
        writer.engine.store(key, 0, _blocks(0))
        writer.drain()
        ours.append(reader.load([key]))
        theirs.append(get())
        reader.drain()
    return {"get": _percentiles(ours[1:]), "client_get": _percentiles(theirs[1:])}


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": statistics.median(ordered) * 1e3,
        "p99_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3,
    }
