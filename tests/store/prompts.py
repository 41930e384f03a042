"""The core over a KV cache of plain memory: what the tests of the directory store and load with."""

import ctypes
import hashlib
import time
from typing import Any

from lmkv import _C

BLOCK_BYTES = 1 << 20
BLOCKS = 64
PER_CHUNK = 4
TOKENS = 16
CHUNK_BYTES = 4096 + PER_CHUNK * BLOCK_BYTES
STORE_DEPTH = 8 << 20


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Core:
    """One engine. The tests' prompts have chunks 0, 1, ... of four blocks of 1 MiB."""

    def __init__(self, root: str, **options: Any) -> None:
        self.memory = ctypes.create_string_buffer(BLOCKS * BLOCK_BYTES)
        options = {"host_memory": 8 * CHUNK_BYTES, "store_depth": STORE_DEPTH, **options}
        self.engine = _C.Engine(
            _C.EngineOptions(
                root=root, namespace=bytes(32), rank=0, block_count=BLOCKS, block_tokens=TOKENS,
                segments=[(ctypes.addressof(self.memory), BLOCK_BYTES, BLOCK_BYTES)],
                blocks_per_chunk=PER_CHUNK, **options,
            )
        )  # fmt: skip

    def wait_for_scan(self) -> None:
        deadline = time.monotonic() + 20
        while not self.engine.stats()["housekeeping_passes"]:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def store(self, prompt: str, chunks: int, used_at: float | None = None) -> int:
        """Store a prompt's chunks; how many were accepted. Waits until they are written."""
        used_at = time.time() if used_at is None else used_at
        accepted = 0
        for index in range(chunks):
            token = index * PER_CHUNK * TOKENS
            blocks = [4 * (index % 8) + i for i in range(PER_CHUNK)]
            if self.engine.store(key(f"{prompt}/{index}"), token, blocks, used_at=used_at):
                accepted += 1
            assert self.engine.drain(60)
        return accepted

    def load(self, prompt: str, chunks: int) -> int:
        """Load a prompt's chunks; how many of the leading ones came."""
        self.engine.poll()
        self.engine.load(
            [
                (key(f"{prompt}/{index}"), index * PER_CHUNK * TOKENS, PER_CHUNK, 0,
                 [32 + 4 * (index % 8) + i for i in range(PER_CHUNK)])
                for index in range(chunks)
            ]
        )  # fmt: skip
        assert self.engine.drain(60)
        (done,) = self.engine.poll()
        return min(done.failed_chunks, default=chunks)
