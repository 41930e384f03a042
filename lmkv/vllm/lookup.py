"""Which of a prompt's chunks can be loaded: keys, the directory, and what is known of both."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from lmkv._C import Directory, LookupService
from lmkv.remote.lookup import RemoteLookup
from lmkv.vllm.memory import Memory
from lmkv.vllm.tiers import TieredLookup

KEY_BYTES = 32

# How long a chunk that failed to load is taken for absent, whatever the directory says.
ABSENT_SECONDS = 60.0

# How long all lookups of one step may wait for the filesystem, together. What is not known by then
# is asked for again in the next step; meanwhile the engine decodes.
WAIT_SECONDS = 0.001

T = TypeVar("T")


class Chunk(NamedTuple):
    """Blocks ``[begin, end)`` of a request, counted from its first token, under one key."""

    key: bytes
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks that follow one another, from block ``begin`` to block ``end`` of a request: whole
    ones, of which the last may be a tail. There may be hundreds, so they are made when wanted.
    """

    keys: list[bytes] = field(default_factory=list)
    begin: int = 0
    end: int = 0
    blocks_per_chunk: int = 1

    def __bool__(self) -> bool:
        return bool(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def first(self, chunks: int) -> "Run":
        """The first so many of them."""
        if chunks >= len(self.keys):
            return self
        end = self.begin + chunks * self.blocks_per_chunk
        return Run(self.keys[:chunks], self.begin, end, self.blocks_per_chunk)

    def __iter__(self) -> Iterator[Chunk]:
        return self.behind(self.begin)

    def behind(self, block: int) -> Iterator[Chunk]:
        """Those that end behind ``block``."""
        first = max(0, block - self.begin) // self.blocks_per_chunk
        begin = self.begin + first * self.blocks_per_chunk
        for key in itertools.islice(self.keys, first, None):
            yield Chunk(key, begin, min(begin + self.blocks_per_chunk, self.end))
            begin += self.blocks_per_chunk


def chunk_key(block_hash: bytes) -> bytes:
    """The 32-byte key of the chunk whose last block has this hash of vLLM's.

    Block hashes chain: each stands for its whole prefix.
    """
    return block_hash.ljust(KEY_BYTES, b"\0")  # xxhash has 16 bytes


def chunk_keys(block_hashes: Sequence[bytes]) -> list[bytes]:
    """``chunk_key`` of each of one engine's hashes, which are all of one length."""
    if block_hashes and len(block_hashes[0]) == KEY_BYTES:
        return list(block_hashes)
    return [chunk_key(block_hash) for block_hash in block_hashes]


class Lookup:
    """Finds the chunks of a prompt. Scheduler thread only. Waits for the filesystem for
    ``WAIT_SECONDS`` between two calls of ``begin_step``, and no longer.
    """

    def __init__(
        self,
        directory: Directory,
        blocks_per_chunk: int,
        tails: bool,
        memory: Memory | None = None,
        clock: Callable[[], float] = time.monotonic,
        remote: RemoteLookup | None = None,
    ) -> None:
        """``memory``: what can be loaded whether or not it is in the directory yet. ``remote``:
        what is behind the directory.
        """
        self._remote = remote
        self._tiers = TieredLookup(directory, remote) if remote is not None else None
        self._service = self._tiers or LookupService(directory)
        self._blocks_per_chunk = blocks_per_chunk
        self._tails = tails
        self._memory = memory or Memory()
        self._clock = clock
        self._absent: dict[bytes, float] = {}
        self._patience = WAIT_SECONDS
        self._given_up = 0

    def begin_step(self) -> None:
        """Have the patience for another step."""
        self._patience = WAIT_SECONDS

    def find(self, block_hashes: Sequence[bytes], first_block: int, limit: int) -> Run | None:
        """The chunks that hold blocks ``[first_block, n)`` of a prompt, for the largest ``n``.

        ``limit`` bounds ``n``. The first chunk may begin before ``first_block``. Empty if nothing
        beyond ``first_block`` is there; None if that is not known yet: to be asked again.
        """
        per_chunk = self._blocks_per_chunk
        begin = first_block // per_chunk * per_chunk
        keys = chunk_keys(block_hashes[begin + per_chunk - 1 : limit : per_chunk])
        length = self._leading(keys[: self._first_absent(keys)])
        if length is None:
            return None
        del keys[length:]
        end = begin + length * per_chunk
        if self._tails:
            # Longest first: a longer tail holds all that a shorter one does.
            ends = range(min(limit, end + per_chunk - 1), max(end, first_block), -1)
            tails = chunk_keys([block_hashes[tail_end - 1] for tail_end in ends])
            longest = self._first_in_memory(tails)
            # With memory that is shared, a longer one is not worth asking the filesystem for.
            if longest == len(tails) or not self._memory.is_shared:
                present = self.present(tails[:longest])
                if present is None:
                    return None
                longest = tails.index(present[0]) if present else longest
            if longest < len(tails):
                keys.append(tails[longest])
                end = ends[longest]
        return Run(keys, begin, end, per_chunk)

    def present(self, keys: Sequence[bytes]) -> list[bytes] | None:
        """Those of ``keys`` that are in the directory; None if that is not known yet."""
        keys = [key for key in keys if not self.is_absent(key)]
        if not keys:
            return []
        there = self._ask(self._service.present, keys)
        return None if there is None else [k for k, found in zip(keys, there, strict=True) if found]

    def _leading(self, keys: list[bytes]) -> int | None:
        """How many of ``keys`` are there one after the other; None if that is not known yet."""
        length = self._memory.leading(keys)
        while length < len(keys):
            found = self._ask(self._service.lookup, keys[length:] if length else keys)
            if found is None:
                return None
            length += found
            if length == len(keys) or keys[length] not in self._memory:
                break
            length += 1
        return length

    def _first_in_memory(self, tails: Sequence[bytes]) -> int:
        """Its index; their number if none is."""
        in_memory = self._memory.among(tails)
        for index, tail in enumerate(tails):
            if tail in in_memory and not self.is_absent(tail):
                return index
        return len(tails)

    def _ask(self, question: Callable[[list[bytes], float], T], keys: list[bytes]) -> T:
        begin = time.monotonic()
        answer = question(keys, self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - begin))
        return answer

    def begin_request(self, since: float, worth: float) -> None:
        """As ``RemoteLookup.begin_request``, if there is a remote tier."""
        if self._remote is not None:
            self._remote.begin_request(since, worth)

    def is_remote(self, key: bytes) -> bool:
        """Whether a chunk was found in the remote tier and in no directory."""
        return self._tiers is not None and self._tiers.is_remote(key)

    def forget(self) -> None:
        """Ask the filesystem again for everything."""
        self._service.forget()

    def take_given_up(self) -> int:
        """How many chunks were taken for absent, since the last call, because the filesystem did
        not answer.
        """
        before, self._given_up = self._given_up, self._service.given_up()
        return self._given_up - before

    def mark_absent(self, keys: Iterable[bytes]) -> None:
        """Take ``keys`` for absent for a while: they failed to load."""
        now = self._clock()
        self._absent = {key: until for key, until in self._absent.items() if until > now}
        self._absent.update(dict.fromkeys(keys, now + ABSENT_SECONDS))

    def mark_stored(self, key: bytes) -> None:
        self._absent.pop(key, None)

    def is_absent(self, key: bytes) -> bool:
        """Whether the chunk is taken for absent, whatever the directory says."""
        until = self._absent.get(key)
        return until is not None and until > self._clock()

    def _first_absent(self, keys: list[bytes]) -> int:
        if not self._absent:
            return len(keys)
        absent = (index for index, key in enumerate(keys) if self.is_absent(key))
        return next(absent, len(keys))
