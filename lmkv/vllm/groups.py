"""The KV cache groups of a model, and what of a chunk each of them needs.

A model with one kind of attention has one group, and a chunk is one file. In a hybrid each group
has blocks of its own, and a chunk a file for each group. Some groups need all blocks of a prefix,
and some only the last ones: sliding windows, and layers with a state, which is one block. What
vLLM keeps for them is what their files hold, and what is loaded. All groups lie in the same memory:
a block is one group's at a time, and is copied the same way whosever it is.
"""

import hashlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    UniformTypeKVCacheSpecs,
)

from lmkv.vllm.lookup import KEY_BYTES, Lookup, Run
from lmkv.vllm.memory import Memory


class Piece(NamedTuple):
    """Blocks ``[begin, end)`` of a request, in one group's file of one chunk; of these those from
    ``first`` on are wanted.
    """

    key: bytes
    begin: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class Group:
    """One of a model's groups. ``index`` is its place among them.

    ``skipped`` says how many leading tokens need no blocks once so many are computed; None for a
    group that needs all of them. ``is_state``: a block holds the state behind its last token, and
    only where a step has ended there: vLLM says when.
    """

    index: int
    block_tokens: int
    blocks_per_chunk: int
    skipped: Callable[[int], int] | None = None
    mask: int = 0
    is_state: bool = False

    def key(self, chunk_key: bytes) -> bytes:
        """The key of this group's file of the chunk. That of the first group is the chunk's."""
        if not self.mask:
            return chunk_key
        return (int.from_bytes(chunk_key) ^ self.mask).to_bytes(KEY_BYTES)

    def first_needed(self, blocks: int) -> int:
        """The first block that is needed to go on behind so many."""
        if self.skipped is None:
            return 0
        return max(0, self.skipped(blocks * self.block_tokens)) // self.block_tokens

    def first_held(self, end: int) -> int:
        """The first block in the file of the chunk that ends before block ``end``."""
        begin = (end - 1) // self.blocks_per_chunk * self.blocks_per_chunk
        return max(begin, self.first_needed(end))

    def pieces(self, run: Run, first_block: int) -> Iterator[Piece]:
        """What is to be loaded of ``run``, all of it, behind ``first_block`` blocks."""
        needed = max(first_block, self.first_needed(run.end))
        for chunk in run.behind(needed):
            held = chunk.begin if self.skipped is None else self.first_held(chunk.end)
            yield Piece(self.key(chunk.key), held, chunk.end, max(held, needed))


class Groups(Sequence[Group]):
    """All groups of a model; the first needs all blocks of a prefix."""

    def __init__(self, groups: Sequence[Group]) -> None:
        assert groups[0].skipped is None
        self._groups = tuple(groups)

    @classmethod
    def of(cls, manager: KVCacheManager, block_tokens: int, blocks_per_chunk: int) -> "Groups":
        """Those of vLLM's, which says itself what each of them keeps."""
        managers = manager.coordinator.single_type_managers
        whole = [index for index, one in enumerate(managers) if needs_all(one.kv_cache_spec)]
        order = whole + [index for index in range(len(managers)) if index not in whole]
        return cls(
            [
                Group(
                    index,
                    block_tokens,
                    blocks_per_chunk,
                    None if index in whole else managers[index].get_num_skipped_tokens,
                    _mask(place),
                    isinstance(managers[index].kv_cache_spec, MambaSpec),
                )
                for place, index in enumerate(order)
            ]
        )

    def keys_beside(self, run: Run, first_block: int) -> list[bytes]:
        """Those of all files but the first group's that are loaded for ``run``, behind
        ``first_block`` blocks.
        """
        others = self._groups[1:]
        return [piece.key for group in others for piece in group.pieces(run, first_block)]

    def __getitem__(self, index: Any) -> Any:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)


def needs_all(spec: KVCacheSpec) -> bool:
    """Whether a group of this kind needs all blocks of a prefix."""
    return all(type(one) in (FullAttentionSpec, MLAAttentionSpec) for one in layer_specs(spec))


def layer_specs(spec: KVCacheSpec) -> list[Any]:
    """The kinds of a group's layers."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return list(spec.kv_cache_specs.values())
    return [spec]


def _mask(place: int) -> int:
    """What the keys of the group at this place differ by from the first one's: no bits in common
    with another group's, but by chance.
    """
    return int.from_bytes(hashlib.sha256(b"lmkv group %d" % place).digest()) if place else 0


class Windows:
    """Says how much of a prefix can be loaded, as all groups are there. Scheduler thread only."""

    def __init__(self, groups: Groups, lookup: Lookup, memory: Memory) -> None:
        """``memory`` as ``lookup`` has it."""
        self._others = list(groups[1:])
        self._lookup = lookup
        self._memory = memory

    def loadable(self, run: Run, first_block: int) -> Run | None:
        """The longest leading part of ``run``, whose chunks are there for the first group, that is
        there for all groups; None if that is not known yet.
        """
        if not run or not self._others:
            return run
        # Nearly always all of it is there; else it is all asked for, so that a step is enough.
        needed = [p.key for group in self._others for p in group.pieces(run, first_block)]
        there = self._ask(needed)
        if there is None:
            return None
        if len(there) == len(needed):
            return run
        files = [(group, [group.key(key) for key in run.keys]) for group in self._others]
        # That something is absent is told once: it must not be asked for a second time.
        rest = {key for _, keys in files for key in keys}.difference(needed)
        more = self._ask(list(rest))
        if more is None:
            return None
        there |= more
        return run.first(self._longest(run, first_block, files, there))

    @staticmethod
    def _longest(
        run: Run,
        first_block: int,
        files: Sequence[tuple[Group, Sequence[bytes]]],
        there: Container[bytes],
    ) -> int:
        """How many of the chunks: each group's files are ``there`` from the first that it needs."""
        gaps = [(group, _last_gaps([key in there for key in keys])) for group, keys in files]
        length = len(run)
        while length:
            end = min(run.end, run.begin + length * run.blocks_per_chunk)
            before = length
            for group, last_gap in gaps:
                begin = max(first_block, group.first_needed(end))
                gap = last_gap[length]
                # Of fewer chunks even earlier ones are needed: the gap must be behind them all.
                if gap >= max(0, begin - run.begin) // run.blocks_per_chunk:
                    length = min(length, gap)
            if length == before:
                return length
        return 0

    def _ask(self, keys: list[bytes]) -> set[bytes] | None:
        there = {k for k in self._memory.among(keys) if not self._lookup.is_absent(k)}
        present = self._lookup.present([key for key in keys if key not in there])
        return None if present is None else there.union(present)


def _last_gaps(there: Sequence[bool]) -> list[int]:
    """For every length, the last index before it where nothing is there; -1 for none."""
    gaps = [-1]
    for index, is_there in enumerate(there):
        gaps.append(gaps[-1] if is_there else index)
    return gaps
