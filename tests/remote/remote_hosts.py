"""Hosts of a test: engines of the core with a directory each, and one remote tier behind them."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from lmkv import _C
from lmkv.remote.carriers import Carriers
from lmkv.remote.store import Place, RemoteStore, open_store

BLOCKS, BLOCK_BYTES, NAMESPACE = 64, 64 << 10, bytes(range(32))
PER_CHUNK = 4
SECONDS = 30.0


def key(n: int) -> bytes:
    return n.to_bytes(32, "big")


class Host:
    """Blocks ``4n`` to ``4n + 3`` are chunk ``n``'s."""

    def __init__(
        self,
        root: Path,
        place: Place,
        fill: bytes = b"",
        *,
        open_: Callable[[], RemoteStore] | None = None,
        writes: str = "write_through",
        bandwidth: int = 0,
        load_timeout: float = 0.0,
        host_memory: int = 16 << 20,
    ) -> None:
        size = BLOCKS * BLOCK_BYTES
        self.memory = ctypes.create_string_buffer(fill, size)
        segments = [(ctypes.addressof(self.memory), BLOCK_BYTES, BLOCK_BYTES)]
        self.engine = _C.Engine(
            _C.EngineOptions(
                root=str(root), namespace=NAMESPACE, rank=0, segments=segments,
                block_count=BLOCKS, block_tokens=16, blocks_per_chunk=PER_CHUNK,
                host_memory=host_memory, load_timeout=load_timeout,
                remote=_C.RemoteOptions(
                    name=str(place), directory=place.directory, writes=writes
                ),
            )
        )  # fmt: skip
        self.said: list[str] = []
        self.carriers: Carriers | None = None
        if not place.directory:
            self.carriers = Carriers(
                self.engine,
                open_ or (lambda: open_store(place)),
                lambda chunk: place.name_of(NAMESPACE, 0, chunk),
                self.said.append,
                bandwidth=bandwidth,
            )

    def wait_until_connected(self) -> Self:
        assert self.carriers is not None
        deadline = time.monotonic() + SECONDS
        while not self.carriers.is_connected:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)
        return self

    def ended(self) -> list[_C.Completion]:
        deadline = time.monotonic() + SECONDS
        completions = []
        # Late loads are given up by who polls.
        while not self.engine.drain(0.005):
            completions += self.engine.poll()
            assert time.monotonic() < deadline, self.engine.stats()
        return completions + self.engine.poll()

    def store(self, n: int) -> str:
        """Why it was not stored, or ""."""
        assert self.engine.store(key(n), n * 64, self.blocks(n))
        return self.ended()[-1].error

    def load(self, *chunks: int) -> _C.Completion:
        self.engine.load([(key(n), n * 64, PER_CHUNK, 0, self.blocks(n)) for n in chunks])
        (completion,) = self.ended()
        return completion

    def blocks(self, n: int) -> list[int]:
        return [n * PER_CHUNK + i for i in range(PER_CHUNK)]

    def bytes_of(self, n: int) -> bytes:
        size = PER_CHUNK * BLOCK_BYTES
        return self.memory.raw[n * size : (n + 1) * size]

    def stat(self, name: str) -> int:
        return self.engine.stats()[name]

    def close(self) -> None:
        if self.carriers is not None:
            self.carriers.stop()
        assert self.engine.close(SECONDS)
        if self.carriers is not None:
            self.carriers.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
