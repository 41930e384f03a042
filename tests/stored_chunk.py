"""A directory with one chunk in it, stored through the real core."""

import ctypes
import time
from pathlib import Path

from lmkv import _C


class OneStoredChunk:
    """Stores one chunk of three blocks, two segments each."""

    blocks, block_tokens, segment_bytes, token_begin, rank = 3, 32, 1000, 512, 5
    namespace, key = bytes(range(32)), bytes(range(100, 132))

    def __init__(self, root: Path) -> None:
        memory = ctypes.create_string_buffer(2 * self.blocks * self.segment_bytes)
        for i in range(len(memory)):
            memory[i] = i * 7 % 251
        base, span = ctypes.addressof(memory), self.blocks * self.segment_bytes
        engine = _C.Engine(
            _C.EngineOptions(
                root=str(root),
                namespace=self.namespace,
                rank=self.rank,
                segments=[
                    (base, self.segment_bytes, self.segment_bytes),
                    (base + span, self.segment_bytes, self.segment_bytes),
                ],
                block_count=self.blocks,
                block_tokens=self.block_tokens,
                blocks_per_chunk=8,
                host_memory=16 << 20,
            )
        )
        assert engine.store(self.key, self.token_begin, [2, 0, 1])
        assert engine.drain(30)
        deadline = time.monotonic() + 30
        errors = []
        while len(errors) < 2 and time.monotonic() < deadline:
            errors += [event.error for event in engine.poll()]
        assert errors == ["", ""]
        self.stats = engine.stats()
        engine.close()
        raw = memory.raw
        size = self.segment_bytes
        self.payload = b"".join(
            raw[offset : offset + size]
            for block in (2, 0, 1)
            for offset in (block * size, span + block * size)
        )
        self.path = (
            root / "v1" / self.namespace.hex()[:16] / f"r{self.rank}" / self.key.hex()[:3]
        ) / f"{self.key.hex()}.kv"
