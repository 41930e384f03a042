"""Chunks that lie in an arena, and the engines that load them from there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmkv._C import ArenaView, Engine, EngineOptions, arena_report, slab_bytes
from lmkv.bench.memory import HostMemory
from lmkv.errors import ConfigError

KIB = 1 << 10
NAMESPACE = bytes(32)
BLOCK_TOKENS = 16
SPARE_SLOTS = 4
PATIENCE_S = 60.0

LoadedChunk = tuple[bytes, int, int, int, list[int]]  # as Engine.load takes it


def key_of(name: str) -> bytes:
    """Of a chunk."""
    return hashlib.sha256(name.encode()).digest()


@dataclass(frozen=True, slots=True)
class Chunks:
    """``count`` chunks of ``blocks`` blocks, of a page of ``page_bytes`` in each of ``layers``."""

    layers: int
    page_bytes: int
    blocks: int
    count: int

    @classmethod
    def of_a_prompt(cls, bytes_total: int) -> Chunks:
        """At least so many bytes, in chunks of 11.25 MiB: 8 blocks of 30 layers."""
        layers, page_bytes, blocks = 30, 48 * KIB, 8
        return cls(layers, page_bytes, blocks, -(-bytes_total // (layers * page_bytes * blocks)))

    @property
    def block_bytes(self) -> int:
        return self.layers * self.page_bytes

    @property
    def slab_bytes(self) -> int:
        return slab_bytes(self.block_bytes, self.blocks)

    @property
    def bytes_total(self) -> int:
        """Of all blocks."""
        return self.count * self.blocks * self.block_bytes

    @property
    def host_memory(self) -> int:
        """For all of them at once."""
        return (self.count + SPARE_SLOTS) * self.slab_bytes

    @property
    def keys(self) -> list[bytes]:
        return [key_of(f"{self.slab_bytes} {index}") for index in range(self.count)]

    def load_into(self, block_ids: Sequence[int]) -> list[LoadedChunk]:
        """All of them, into these blocks."""
        size, tokens = self.blocks, self.blocks * BLOCK_TOKENS
        return [
            (key, i * tokens, size, 0, list(block_ids[i * size : (i + 1) * size]))
            for i, key in enumerate(self.keys)
        ]

    def engine(self, folder: Path, cache: HostMemory, *, is_shared: bool = True) -> Engine:
        """An engine over ``cache``, of which layers are outermost. Raises ConfigError."""
        block_count = cache.bytes_total // self.block_bytes
        layer_bytes = block_count * self.page_bytes
        engine = Engine(
            EngineOptions(
                root=str(folder / "root"),
                namespace=NAMESPACE,
                rank=0,
                segments=[
                    (cache.address + layer * layer_bytes, self.page_bytes, self.page_bytes)
                    for layer in range(self.layers)
                ],
                block_count=block_count,
                block_tokens=BLOCK_TOKENS,
                blocks_per_chunk=self.blocks,
                host_memory=self.host_memory,
                free_space_floor=0,
                arena_directory=str(folder) if is_shared else "",
            )
        )
        if is_shared and (error := engine.info()["arena_error"]):
            raise ConfigError(error)
        return engine

    def view(self, folder: Path) -> ArenaView:
        """A scheduler's."""
        return ArenaView(
            directory=str(folder), slab_bytes=self.slab_bytes, file_mode="private",
            namespace=NAMESPACE, ranks=1,
        )  # fmt: skip

    def store(self, folder: Path) -> None:
        """All of them, random bytes, into the arena, which is made."""
        cache = HostMemory(self.bytes_total)  # for as long as the engine
        engine = self.engine(folder, cache)
        for index, key in enumerate(self.keys):
            self._wait_for_pages(folder)
            begin = index * self.blocks
            ids = range(begin, begin + self.blocks)
            if not engine.store(key, begin * BLOCK_TOKENS, list(ids)):
                raise RuntimeError("a store was dropped")
            engine.drain(PATIENCE_S)
        if self.view(folder).leading(self.keys) != self.count:
            raise RuntimeError("not all chunks are in the arena")

    def _wait_for_pages(self, folder: Path) -> None:
        """Of one slot more; without, a chunk that is there would make way."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            report = arena_report(str(folder), self.slab_bytes)
            if report is not None and report.slots.unused > report.slots.bare:
                return
            time.sleep(0.0005)
        raise RuntimeError("the arena gets no memory")
