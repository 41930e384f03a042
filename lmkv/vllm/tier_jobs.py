"""A tier's transfers: vLLM's jobs of many chunks, and what the C++ engine makes of each chunk."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from vllm.logger import init_logger
from vllm.v1.kv_offload.base import OffloadKey
from vllm.v1.kv_offload.tiering.base import JobResult, TransferJob

from lmkv._C import Completion, CompletionKind, Engine
from lmkv.vllm.activity import Throttle
from lmkv.vllm.tier_identity import tier_key
from lmkv.vllm.tier_lookup import TierLookup

logger = init_logger("vllm.lmkv")

# How long a chunk waits for host memory that it is stored by way of. Meanwhile vLLM cannot use its
# row for another.
STORE_WAIT_SECONDS = 1.0

_PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Place:
    """A chunk, where it begins in its prompt, and its row in vLLM's CPU cache."""

    key: OffloadKey
    token_begin: int
    row: int


@dataclass(slots=True)
class _Job:
    """A job of vLLM's, which ends when nothing reads or writes its rows any more."""

    transfer: TransferJob
    used_at: float | None
    left: int  # chunks under way
    failed: set[OffloadKey]
    begun: float = field(default_factory=time.monotonic)


class _Store(Enum):
    """What became of the beginning of a store."""

    BEGUN = auto()
    DROPPED = auto()
    NO_MEMORY = auto()  # for now


class TierJobs:
    """Scheduler thread only. No call but ``drain`` and ``close`` waits for anything."""

    def __init__(self, engine: Engine, lookup: TierLookup, row_bytes: int, most: int) -> None:
        """``most``: stores that the engine takes at a time."""
        self._engine = engine
        self._lookup = lookup
        self._row_bytes = row_bytes
        self._most = most
        self._jobs: dict[int, _Job] = {}  # by vLLM's number
        self._waiting: deque[tuple[_Job, Place]] = deque()
        self._stores: dict[int, tuple[_Job, OffloadKey]] = {}  # by the engine's number, as below
        self._loads: dict[int, tuple[_Job, list[OffloadKey]]] = {}
        self._results: list[JobResult] = []
        self._stored: list[OffloadKey] = []
        self._error_lines = Throttle()
        self._no_memory = 0  # of the engine's counter
        self.dropped = 0  # chunks that waited for host memory in vain, unknown to the engine
        self.put_back = 0  # those that the engine counts as dropped, and that were asked for again
        self.moved = False  # the engine's counters, perhaps, since this was last set to False

    @property
    def pending(self) -> bool:
        """Whether there is a job that vLLM was not told the end of."""
        return bool(self._jobs or self._results)

    @property
    def under_way(self) -> bool:
        """Whether the engine is at work."""
        return bool(self._stores or self._loads)

    # -- begin ---------------------------------------------------------------------------

    def store(self, transfer: TransferJob, places: Sequence[Place], used_at: float | None) -> None:
        """Store the chunks of ``transfer`` whose places are known; the others fail."""
        job = self._begin(transfer, places, used_at)
        self._waiting.extend((job, place) for place in places)
        self._begin_stores()

    def load(self, transfer: TransferJob, places: Sequence[Place], used_at: float | None) -> None:
        """As ``store``."""
        job = self._begin(transfer, places, used_at)
        self.moved = True
        if not places:
            return
        chunks = [(tier_key(place.key), place.token_begin, 1, 0, [place.row]) for place in places]
        try:
            number = self._engine.load(chunks, used_at=used_at)
        except Exception as error:  # noqa: BLE001 - nothing may end the engine in a step
            self._say("a load", error)
            # Else they would be found, promoted and not loaded for ever.
            self._lookup.mark_absent(place.key for place in places)
            for place in places:
                self._end_chunk(job, place.key, failed=True)
        else:
            self._loads[number] = job, [place.key for place in places]

    def touch(self, chunks: Sequence[tuple[bytes, int]], used_at: float | None) -> None:
        """Count chunks, by key and beginning, as used."""
        if not chunks:
            return
        self.moved = True
        try:
            self._engine.touch(chunks, used_at)
        except Exception as error:  # noqa: BLE001 - nothing may end the engine in a step
            self._say("a renewal of files' times", error)

    def _begin(self, transfer: TransferJob, places: Sequence[Place], used_at: float | None) -> _Job:
        failed = set(transfer.keys).difference(place.key for place in places)
        job = self._jobs[transfer.job_id] = _Job(transfer, used_at, len(places), failed)
        if not places:
            self._end(job)
        return job

    def _begin_stores(self) -> None:
        too_old = time.monotonic() - STORE_WAIT_SECONDS
        while self._waiting and len(self._stores) < self._most:
            job, place = self._waiting.popleft()
            begun = self._begin_store(job, place)
            if begun is _Store.NO_MEMORY and job.begun >= too_old:
                self._waiting.appendleft((job, place))
                self.put_back += 1
                return
            if begun is not _Store.BEGUN:
                self._end_chunk(job, place.key, failed=True)
        while self._waiting and self._waiting[0][0].begun < too_old:
            self._drop_first()

    def _begin_store(self, job: _Job, place: Place) -> _Store:
        self.moved = True
        try:
            number = self._engine.store(
                tier_key(place.key), place.token_begin, [place.row], used_at=job.used_at
            )
        except Exception as error:  # noqa: BLE001 - nothing may end the engine in a step
            self._say("a store", error)
            return _Store.DROPPED
        if number:
            self._stores[number] = job, place.key
            return _Store.BEGUN
        return _Store.NO_MEMORY if self._found_no_memory() else _Store.DROPPED

    def _found_no_memory(self) -> bool:
        """Whether the last store was dropped because loads need the memory, or other stores have
        it. What finds a directory full, or out of service, the engine counts elsewhere; its threads
        count here too, but only what is cancelled at the end.
        """
        before, self._no_memory = self._no_memory, self._engine.stats()["stores_dropped"]
        return self._no_memory > before

    def _drop_first(self) -> None:
        job, place = self._waiting.popleft()
        self.dropped += 1
        self.moved = True
        self._end_chunk(job, place.key, failed=True)

    # -- end -----------------------------------------------------------------------------

    def poll(self) -> None:
        """Take in what the engine has completed, and begin what has waited for that."""
        for completion in self._engine.poll():
            self.moved = True
            self._say_failed(completion)
            if completion.kind is CompletionKind.LOADED:
                self._loaded(completion)
            elif completion.kind is CompletionKind.GATHERED:
                self._gathered(completion)
            else:
                _, key = self._stores.pop(completion.job)
                self._lookup.left_memory(key)
                if not completion.error:
                    self._stored.append(key)
        self._begin_stores()

    def take_results(self) -> list[JobResult]:
        results, self._results = self._results, []
        return results

    def take_stored(self) -> list[OffloadKey]:
        """Chunks that have got their files since the last call."""
        stored, self._stored = self._stored, []
        return stored

    def _gathered(self, completion: Completion) -> None:
        job, key = self._stores[completion.job]
        if not completion.error:
            self._lookup.in_memory(key)
        self._end_chunk(job, key, failed=bool(completion.error))

    def _loaded(self, completion: Completion) -> None:
        job, keys = self._loads.pop(completion.job)
        failed = {keys[index] for index in completion.failed_chunks}
        self._lookup.mark_absent(failed)
        for key in keys:
            self._end_chunk(job, key, failed=key in failed)

    def _end_chunk(self, job: _Job, key: OffloadKey, *, failed: bool) -> None:
        if failed:
            job.failed.add(key)
        job.left -= 1
        if not job.left:
            self._end(job)

    def _end(self, job: _Job) -> None:
        del self._jobs[job.transfer.job_id]
        transfer, failed = job.transfer, job.failed
        successful: tuple[OffloadKey, ...] | None = None
        if transfer.is_promotion and failed:
            successful = tuple(key for key in transfer.keys if key not in failed)
        self._results.append(
            JobResult(
                job_id=transfer.job_id,
                success=not failed,
                successful_keys=successful,
                transfer_time=time.monotonic() - job.begun,
                transfer_bytes=(len(transfer.keys) - len(failed)) * self._row_bytes,
            )
        )

    def _say(self, what: str, error: Exception) -> None:
        if self._error_lines.passes():
            logger.error("lmkv: %s could not be started: %s", what, error)

    def _say_failed(self, completion: Completion) -> None:
        if completion.error and self._error_lines.passes():
            what = completion.kind.name.lower()
            logger.warning("lmkv: rank %d: a chunk was not %s: %s", 0, what, completion.error)

    # -- all of them ---------------------------------------------------------------------

    def drain(self, seconds: float) -> None:
        """Block until all jobs have ended. What is not loaded after ``seconds`` is given up: a disk
        that does not answer is not waited for. No row is ever left half written.
        """
        while self._waiting:
            self._drop_first()
        until = time.monotonic() + seconds
        while True:
            self.poll()
            if not self._jobs:
                return
            if time.monotonic() >= until:
                for number in list(self._loads):
                    self._engine.cancel(number)
            time.sleep(_PAUSE_SECONDS)
