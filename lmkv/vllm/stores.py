"""What to store and when: plans each step's stores and keeps their source blocks alive."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from lmkv._C import USE_TICK_SECONDS
from lmkv.vllm.events import Events
from lmkv.vllm.groups import Group, Groups
from lmkv.vllm.known import KnownChunks
from lmkv.vllm.lookup import chunk_key
from lmkv.vllm.metadata import StepReport, Store, Use

# A decoding request is looked at again so many steps before its next chunk can be full: steps are
# planned before those before them have said what they sampled.
EARLY_STEPS = 8


@dataclass(slots=True)
class _Progress:
    """How far a request's chunks have been looked at for storing."""

    request: Request
    used_at: float
    number: int  # no other has it
    next_block: int = 0
    tail_done: bool = False


class StorePlanner:
    """Plans the stores of every request. Scheduler thread only; never blocks.

    Invariant: the blocks of a job are held by one reference each, from the step that plans it
    until every rank has gathered it, so that neither the end nor the preemption of their
    request lets them be written to.
    """

    def __init__(
        self,
        pool: BlockPool,
        blocks_of: Callable[[str], Sequence[Sequence[KVCacheBlock]]],
        groups: Groups,
        *,
        block_tokens: int,
        blocks_per_chunk: int,
        ranks: int,
        tails: bool,
        generated: bool,
        draft_tokens: int,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``blocks_of``: a request's blocks, of each group. ``draft_tokens``: how many a step may
        speculate on. ``events`` is told of every store.
        """
        self._pool = pool
        self._blocks_of = blocks_of
        self._groups = groups
        self._block_tokens = block_tokens
        self._blocks_per_chunk = blocks_per_chunk
        self._ranks = ranks
        self._tails = tails
        self._generated = generated
        # The last slot may hold a rejected draft's KV.
        self._unverified_tokens = 1 if draft_tokens else 0
        self._most_tokens = 1 + draft_tokens  # that a step decodes
        self._events = events
        self._requests: dict[str, _Progress] = {}
        # Those to be looked at, by the step in which. Of hundreds that decode few have a full chunk
        # in any step.
        self._due: dict[int, list[tuple[str, int]]] = {}  # ids, numbers of their progress
        self._step = 0
        self._last_number = 0
        self._clock = clock
        self._known = KnownChunks(clock)
        # Used while being stored: said when the file is there.
        self._used_early: dict[bytes, tuple[int, float]] = {}
        self._uses: list[Use] = []
        self._last_job = 0
        self._pinned: dict[int, Sequence[KVCacheBlock]] = {}
        self._storing: dict[int, bytes] = {}
        self._began: dict[int, float] = {}
        self._seconds: list[float] = []
        self._storing_keys: set[bytes] = set()
        # Of these, what all ranks have gathered: they serve it from host memory.
        self._in_memory: set[bytes] = set()
        self._gathered: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._unstored: set[int] = set()

    @property
    def pinned_jobs(self) -> int:
        return len(self._pinned)

    @property
    def unfinished_jobs(self) -> int:
        return len(self._storing)

    @property
    def in_memory(self) -> AbstractSet[bytes]:
        """Keys of chunks that are not in the directory yet, but can be loaded. It changes."""
        return self._in_memory

    def admit(self, request: Request, used_at: float) -> None:
        """Look at all chunks of a request that was given blocks, from its first token on.

        ``used_at``: now, as of ``time.time()``; its chunks count as used then.
        """
        self._last_number += 1
        progress = _Progress(request, used_at, self._last_number)
        self._requests[request.request_id] = progress
        self._look_at(progress, 1)

    def forget(self, request_id: str) -> None:
        """The request ended; its jobs go on."""
        self._requests.pop(request_id, None)
        if not self._requests:
            self._due.clear()

    @property
    def has_requests(self) -> bool:
        """Whether any request may have something to store in a later step."""
        return bool(self._requests)

    def know(self, keys: Iterable[bytes]) -> None:
        """``keys`` are in the directory: do not store them for the next minute."""
        self._known.add(keys)

    def doubt(self, keys: Iterable[bytes]) -> None:
        """``keys`` are not, or no longer, in the directory: store them when next computed."""
        self._known.discard(keys)

    def unknown(self, block_hashes: Sequence[bytes], blocks: int) -> list[bytes]:
        """Keys of the whole chunks in the first ``blocks`` blocks, as far as these are needed to
        go on behind them, that may have to be stored.
        """
        per_chunk = self._blocks_per_chunk
        return [
            key
            for group in self._groups
            for end in _ends_behind(group.first_needed(blocks), blocks, per_chunk)
            if not self._is_stored(key := group.key(chunk_key(block_hashes[end - 1])))
        ]

    def keys_between(self, request: Request, begin: int, end: int) -> list[bytes]:
        """Keys of a request's chunks, its prompt's tail included, that end in (begin, end]."""
        hashes, per_chunk = request.block_hashes, self._blocks_per_chunk
        ends = list(range((begin // per_chunk + 1) * per_chunk, end + 1, per_chunk))
        tail = self._tail_end(request)
        if begin < tail <= end and tail % per_chunk:
            ends.append(tail)
        keys = [chunk_key(hashes[end - 1]) for end in ends]
        return [group.key(key) for group in self._groups for key in keys]

    def stop(self) -> None:
        """Plan no more stores for the requests that there are; jobs in flight go on."""
        self._requests.clear()
        self._due.clear()
        self._known.clear()
        self._uses.clear()
        self._used_early.clear()

    def plan(
        self,
        scheduled_tokens: dict[str, int],
        states: Mapping[str, Iterable[tuple[int, int, int]]] | None = None,
    ) -> list[Store]:
        """Stores of all chunks that are full when this step's forward pass is done.

        ``states``: those that are there then, of requests, as vLLM hands them out: group, block
        and the tokens that the state is behind.
        """
        stores: list[Store] = []
        for request_id, of_request in (states or {}).items():
            if progress := self._requests.get(request_id):
                self._add_states(progress, of_request, stores)
        self._step += 1
        for request_id, number in self._due.pop(self._step, ()):
            progress = self._requests.get(request_id)
            if progress is None or progress.number != number:  # it ended, or begins anew
                continue
            tokens = scheduled_tokens.get(request_id)
            steps = 1 if tokens is None else self._advance(progress, tokens, stores)
            if steps:
                self._look_at(progress, steps)
            else:
                del self._requests[request_id]
        return stores

    def _look_at(self, progress: _Progress, steps: int) -> None:
        """Look at it again after so many steps."""
        due = progress.request.request_id, progress.number
        self._due.setdefault(self._step + steps, []).append(due)

    def pass_over(self) -> None:
        """In this step nothing is stored: who is due is looked at in the next."""
        self._step += 1
        if due := self._due.pop(self._step, None):
            self._due.setdefault(self._step + 1, []).extend(due)

    def _advance(self, progress: _Progress, tokens: int, stores: list[Store]) -> int:
        """Plan what ``tokens`` more tokens complete. Returns how many steps later there can be
        more, 0 if never.
        """
        request = progress.request
        prompt = request.num_prompt_tokens
        # Prompt tokens are never drafts.
        valid = max(request.num_tokens - self._unverified_tokens, prompt)
        end = min(request.num_computed_tokens + tokens, valid)
        if not self._generated:
            end = min(end, prompt)
        per_chunk = self._blocks_per_chunk
        begin = progress.next_block
        # Hashes may lag behind tokens: vLLM 0.33 can make a block's cover tokens behind it.
        full = min(end // self._block_tokens, len(request.block_hashes))
        while begin + per_chunk <= full:
            begin += per_chunk
            self._add(progress, begin, stores)
        progress.next_block = begin
        if end < prompt:
            return 1
        if self._tails and not progress.tail_done:
            progress.tail_done = True
            tail = self._tail_end(request)
            if tail % per_chunk:
                self._add(progress, tail, stores)
        if not self._generated:
            return 0
        if request.num_computed_tokens + tokens < request.num_tokens:
            return 1  # it was preempted, and computes what it had generated, many tokens a step
        left: int = (begin + per_chunk) * self._block_tokens - end
        return max(1, left // self._most_tokens - EARLY_STEPS)

    def _tail_end(self, request: Request) -> int:
        """The block that a prompt's tail ends before: as far as the same prompt could load."""
        last: int = request.num_prompt_tokens - 1
        return min(last // self._block_tokens, len(request.block_hashes))

    def _add(self, progress: _Progress, end: int, stores: list[Store]) -> None:
        """The chunk that ends before block ``end``: each group's file of it."""
        key = chunk_key(progress.request.block_hashes[end - 1])
        for group in self._groups:
            if not group.is_state:
                self._add_file(progress, group, group.key(key), end, stores)

    def _add_states(
        self, progress: _Progress, states: Iterable[tuple[int, int, int]], stores: list[Store]
    ) -> None:
        """Of these the ones that are behind a chunk, or behind the prompt's tail."""
        request = progress.request
        for index, block_id, tokens in states:
            if tokens > request.num_prompt_tokens and not self._generated:
                continue
            end, rest = divmod(tokens, self._block_tokens)
            is_tail = self._tails and end == self._tail_end(request)
            if rest or not (is_tail or end % self._blocks_per_chunk == 0):
                continue
            key = chunk_key(request.block_hashes[end - 1])
            for group in self._groups:
                if group.is_state and group.index == index:
                    block = self._pool.blocks[block_id]
                    self._add_file(progress, group, group.key(key), end, stores, [block])

    def _add_file(
        self,
        progress: _Progress,
        group: Group,
        key: bytes,
        end: int,
        stores: list[Store],
        blocks: Sequence[KVCacheBlock] | None = None,
    ) -> None:
        begin = group.first_held(end)
        if self._is_stored(key):
            self.use(key, begin, progress.used_at)
            return
        if blocks is None:
            blocks = self._blocks_of(progress.request.request_id)[group.index][begin:end]
        # A window may have moved on, or have begun behind what was loaded.
        if not blocks or len(blocks) != end - begin or any(block.is_null for block in blocks):
            return
        self._pool.touch(blocks)
        self._last_job += 1
        self._pinned[self._last_job] = blocks
        self._storing[self._last_job] = key
        self._storing_keys.add(key)
        self._began[self._last_job] = self._clock()
        if not group.is_state:
            self._events.planned(key, progress.request, begin, end, group.index)
        stores.append(
            Store(
                self._last_job,
                key,
                begin * self._block_tokens,
                [block.block_id for block in blocks],
                progress.used_at,
            )
        )

    def use(self, key: bytes, begin: int, used_at: float) -> None:
        """The chunk of that key, from block ``begin`` on, is used by a request.

        What is stored behind it must not be newer than it: eviction would take it first.
        """
        if key in self._storing_keys:
            self._used_early[key] = begin, used_at
            return
        if not self._known.use(key, int(used_at // USE_TICK_SECONDS)):
            return
        if not self._uses or self._uses[-1].used_at != used_at:
            self._uses.append(Use([], used_at))
        self._uses[-1].chunks.append((key, begin * self._block_tokens))

    def use_local(self, request: Request, blocks: int, used_at: float) -> None:
        """Use the chunks in a request's first ``blocks`` blocks, of which none is to be stored."""
        hashes, per_chunk = request.block_hashes, self._blocks_per_chunk
        ends = [*range(per_chunk, blocks + 1, per_chunk)]
        if blocks % per_chunk and blocks == self._tail_end(request):
            ends.append(blocks)
        for group in self._groups:
            first = group.first_needed(blocks)
            for end in ends:
                if end > first:
                    key = group.key(chunk_key(hashes[end - 1]))
                    self.know([key])  # only so that it is said once a tick
                    self.use(key, group.first_held(end), used_at)

    def take_uses(self) -> list[Use]:
        """What was used since the last call, for the workers."""
        uses, self._uses = self._uses, []
        return uses

    def _is_stored(self, key: bytes) -> bool:
        return key in self._storing_keys or key in self._known

    def settle(self, report: StepReport) -> list[bytes]:
        """Take in what the workers report; returns the keys that were stored by all ranks."""
        self._unstored |= report.unstored
        for job in self._complete(self._gathered, report.gathered):
            self._unpin(job)
            self._in_memory.add(self._storing[job])
        stored = []
        for job in self._complete(self._ended, report.ended):
            key = self._storing.pop(job)
            self._storing_keys.discard(key)
            self._in_memory.discard(key)
            if early := self._used_early.pop(key, None):
                self.use(key, *early)
            began = self._began.pop(job)
            is_stored = job not in self._unstored
            self._events.ended(key, stored=is_stored)
            if is_stored:
                stored.append(key)
                self._seconds.append(self._clock() - began)
            else:
                self._unstored.discard(job)
                self.doubt([key])
        self.know(stored)
        return stored

    def take_seconds(self) -> list[float]:
        """What the stores took that ended since the last call, from plan to file."""
        seconds, self._seconds = self._seconds, []
        return seconds

    def _complete(self, counts: dict[int, int], more: dict[int, int]) -> list[int]:
        """Add the ranks' counts; the jobs that all ranks have now reported."""
        complete = []
        for job, count in more.items():
            counts[job] = counts.get(job, 0) + count
            if counts[job] == self._ranks:
                del counts[job]
                complete.append(job)
        return complete

    def _unpin(self, job: int) -> None:
        # Last block first: what is freed first is evicted first, and a prefix needs its head.
        self._pool.free_blocks(reversed(self._pinned.pop(job)))

    def holds_unused_blocks(self) -> bool:
        """Whether a block would be free but for a store that reads it."""
        pinned = (block for blocks in self._pinned.values() for block in blocks)
        return any(block.ref_cnt == 1 for block in pinned)


def _ends_behind(first: int, blocks: int, per_chunk: int) -> range:
    """The ends of the whole chunks in the first ``blocks`` blocks that end behind ``first``."""
    return range((first // per_chunk + 1) * per_chunk, blocks + 1, per_chunk)
