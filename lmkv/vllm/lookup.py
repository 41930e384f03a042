"""Which of a prompt's chunks can be loaded: keys, the directory, and what is known of both."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lmkv._C import Directory

KEY_BYTES = 32

# How long a chunk that failed to load is taken for absent, whatever the directory says.
ABSENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks ``[begin, end)`` of a request, counted from its first token, under one key."""

    key: bytes
    begin: int
    end: int


def chunk_key(block_hash: bytes) -> bytes:
    """The 32-byte key of the chunk whose last block has this hash of vLLM's.

    Block hashes chain: each stands for its whole prefix.
    """
    return block_hash.ljust(KEY_BYTES, b"\0")  # xxhash has 16 bytes


class Lookup:
    """Finds the chunks of a prompt. Scheduler thread only; blocks on one or two batched calls."""

    def __init__(
        self,
        directory: Directory,
        blocks_per_chunk: int,
        tails: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._blocks_per_chunk = blocks_per_chunk
        self._tails = tails
        self._clock = clock
        self._absent: dict[bytes, float] = {}

    def find(self, block_hashes: Sequence[bytes], first_block: int, limit: int) -> list[Chunk]:
        """The chunks that hold blocks ``[first_block, n)`` of a prompt, for the largest ``n``.

        ``limit`` bounds ``n``. They follow one another; the first may begin before
        ``first_block``; the last may be a tail. Empty if nothing beyond ``first_block`` is there.
        """
        per_chunk = self._blocks_per_chunk
        begins = range(first_block // per_chunk * per_chunk, limit - per_chunk + 1, per_chunk)
        chunks = [self._chunk(block_hashes, begin, begin + per_chunk) for begin in begins]
        chunks = chunks[: self._first_absent(chunks)]
        if chunks:
            del chunks[self._directory.lookup([chunk.key for chunk in chunks]) :]
        boundary = chunks[-1].end if chunks else first_block // per_chunk * per_chunk
        if self._tails:
            # Longest first: a longer tail holds all that a shorter one does.
            ends = range(min(limit, boundary + per_chunk - 1), max(boundary, first_block), -1)
            tails = [self._chunk(block_hashes, boundary, end) for end in ends]
            present = self.present([tail.key for tail in tails])[:1]
            chunks += [tail for tail in tails if tail.key in present]
        return chunks

    def present(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that are in the directory. One batched call, none for no keys."""
        keys = [key for key in keys if not self._is_absent(key)]
        there = self._directory.present(keys) if keys else []
        return [key for key, found in zip(keys, there, strict=True) if found]

    def mark_absent(self, keys: Iterable[bytes]) -> None:
        """Take ``keys`` for absent for a while: they failed to load."""
        now = self._clock()
        self._absent = {key: until for key, until in self._absent.items() if until > now}
        self._absent.update(dict.fromkeys(keys, now + ABSENT_SECONDS))

    def mark_stored(self, key: bytes) -> None:
        self._absent.pop(key, None)

    def _chunk(self, block_hashes: Sequence[bytes], begin: int, end: int) -> Chunk:
        return Chunk(chunk_key(block_hashes[end - 1]), begin, end)

    def _is_absent(self, key: bytes) -> bool:
        until = self._absent.get(key)
        return until is not None and until > self._clock()

    def _first_absent(self, chunks: list[Chunk]) -> int:
        if not self._absent:
            return len(chunks)
        absent = (index for index, chunk in enumerate(chunks) if self._is_absent(chunk.key))
        return next(absent, len(chunks))
