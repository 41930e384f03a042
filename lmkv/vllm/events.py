"""KV events: what this engine put into the directory, and what it saw go, for KV-aware routers."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    to_event_extra_keys,
)
from vllm.v1.request import Request

# Chunks whose blocks are remembered, so that it can be said that they are gone: the newest.
REMEMBERED_CHUNKS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks of a chunk, as they are announced."""

    hashes: list[BlockHash]
    parent: BlockHash | None
    tokens: list[int]
    extra_keys: list[tuple[object, ...] | None]
    session: str | None
    group: int


class Events:
    """BlockStored when a chunk is in the directory, BlockRemoved when this engine evicted it or
    found it gone or bad. What other engines store they say themselves. A block in a tail and in a
    whole chunk is announced with either. Scheduler thread only.
    """

    def __init__(self, block_tokens: int, *, enabled: bool) -> None:
        self._block_tokens = block_tokens
        self._enabled = enabled
        self._planned: dict[bytes, _Blocks] = {}
        self._stored: OrderedDict[bytes, tuple[list[BlockHash], int]] = OrderedDict()
        self._events: list[KVCacheEvent] = []

    def planned(self, key: bytes, request: Request, begin: int, end: int, group: int = 0) -> None:
        """Blocks ``[begin, end)`` of ``request`` are about to be stored under ``key``: those of
        vLLM's KV cache group of that index.
        """
        if not self._enabled:
            return
        hashes, size = request.block_hashes, self._block_tokens
        extra_keys = [
            generate_block_hash_extra_keys(request, block * size, (block + 1) * size, 0)[0]
            for block in range(begin, end)
        ]
        self._planned[key] = _Blocks(
            list(hashes[begin:end]),
            hashes[begin - 1] if begin else None,
            list(request.all_token_ids[begin * size : end * size]),
            extra_keys,
            request.session_id,
            group,
        )

    def ended(self, key: bytes, *, stored: bool) -> None:
        """The store of that key ended."""
        blocks = self._planned.pop(key, None)
        if blocks is None or not stored:
            return
        parent = blocks.parent
        self._events.append(
            BlockStored(
                block_hashes=[maybe_convert_block_hash(each) for each in blocks.hashes],
                parent_block_hash=None if parent is None else maybe_convert_block_hash(parent),
                token_ids=blocks.tokens,
                block_size=self._block_tokens,
                lora_id=None,
                medium=MEDIUM_STORAGE,
                lora_name=None,
                extra_keys=to_event_extra_keys(blocks.extra_keys),
                group_idx=blocks.group,
                session_id=blocks.session,
            )
        )
        self._stored[key] = blocks.hashes, blocks.group
        self._stored.move_to_end(key)
        while len(self._stored) > REMEMBERED_CHUNKS:
            self._stored.popitem(last=False)

    def gone(self, keys: Iterable[bytes]) -> None:
        """Chunks that are not in the directory any more."""
        for key in keys:
            if stored := self._stored.pop(key, None):
                hashes, group = stored
                self._events.append(
                    BlockRemoved(
                        block_hashes=[maybe_convert_block_hash(each) for each in hashes],
                        medium=MEDIUM_STORAGE,
                        group_idx=group,
                    )
                )

    def take(self) -> list[KVCacheEvent]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events
