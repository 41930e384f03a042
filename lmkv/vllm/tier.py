"""``LMKVTier``: a directory below the CPU cache of vLLM's own offloading connector.

vLLM's ``TieringOffloadingSpec`` keeps chunks as rows of one CPU cache, and tells its tiers which
rows to store and where to load to. A row has what all workers of this host hold of a chunk, one
behind the other, so that a chunk is one file however many workers there are.

All of it runs on the scheduler's thread, and no call but ``__init__``, ``drain_jobs`` and
``shutdown`` waits for a disk: the C++ engine has threads of its own and is polled once a step. No
call of a step raises: a store that cannot be is dropped, a load that cannot be fails.
"""

# The parameters are the interface's, whether or not lmkv needs them.
# ruff: noqa: ARG002, ARG003

import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from lmkv.vllm import notices, tier_identity
from lmkv.vllm.activity import Throttle
from lmkv.vllm.tier_identity import request_keys, tier_key
from lmkv.vllm.tier_jobs import Place, TierJobs
from lmkv.vllm.tier_lookup import TierLookup
from lmkv.vllm.tier_metrics import TierDeltas, definitions
from lmkv.vllm.tier_start import TierCore

logger = init_logger("vllm.lmkv")

# How long ``drain_jobs`` and ``shutdown`` wait for loads before they give them up, and the latter
# for stores that are under way.
DRAIN_SECONDS = 3.0

# And, after that, for a disk to answer.
CLOSE_SECONDS = 1.0

# How often counters are looked at that move by themselves, as those of eviction do.
STATS_SECONDS = 1.0


@dataclass(slots=True)
class _Request:
    used_at: float = field(default_factory=time.time)
    has_used_its_head: bool = False


class LMKVTier(SecondaryTierManager):
    """``"type": "LMKVTier", "module_path": "lmkv.vllm"`` among vLLM's ``secondary_tiers``.

    Raises ConfigError at start for settings that cannot work and where no directory can be used.
    What cannot be kept for another reason is no error: nothing is stored or loaded.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        *,
        locality: str | None = None,
        enable_kv_events: bool = False,
        one_host: bool = False,
        **settings: object,
    ) -> None:
        """Find out what the KV is made of and start the engine. Blocks on the disk.

        ``locality`` and ``enable_kv_events`` are as for vLLM's own tiers, ``one_host`` says that
        all workers are on this host, and all other names are lmkv's settings
        (docs/configuration.md).
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = None if locality is None else Locality(locality)
        self._config = tier_identity.settings(settings, os.environ, offloading_spec)
        self._wants_events = self._has_events(enable_kv_events)
        self._requests: dict[str, _Request] = {}
        self._chunk_tokens = {
            group.group_id: group.tokens_per_block * offloading_spec.blocks_per_chunk
            for group in offloading_spec.config.groups
        }
        self._was_reset = False
        self._refused: list[JobResult] = []
        self._core: TierCore | None = None
        self._deltas = TierDeltas(tier_identity.label(tier_type, settings, offloading_spec))
        self._full_lines = Throttle()
        self._full = 0  # stores that were dropped because a directory is full
        self._next_stats = 0.0
        refusal = tier_identity.refusal(
            offloading_spec.config, one_host=tier_identity.is_one_host(one_host)
        )
        if refusal:
            logger.warning("lmkv: nothing is stored or loaded: %s", refusal)
            return
        if backpressure_detector is not None:
            logger.warning(
                "lmkv: vLLM's backpressure has no use here: a store ends when its rows were "
                "copied, and what finds no host memory within a second is dropped"
            )
        self._core = TierCore(offloading_spec, self._config, primary_kv_view)
        self._lookup = TierLookup(self._core.directory)
        self._jobs = TierJobs(
            self._core.engine, self._lookup, self.block_size_bytes, self._core.most_stores()
        )

    # -- start and end -------------------------------------------------------------------

    def _has_events(self, enabled: bool) -> bool:
        if enabled and not self._offloading_spec.kv_events_config.enable_kv_cache_events:
            logger.warning(
                "lmkv: enable_kv_events has no effect: vLLM's own KV cache events are off"
            )
            return False
        return enabled

    def drain_jobs(self) -> None:
        """Called when vLLM's cache is reset, which may be for other weights: from then on
        what the namespace says of them may be untrue, and nothing is stored or loaded any more.
        """
        if not self._was_reset:
            self._was_reset = True
            logger.warning(
                "lmkv: the cache was reset (the weights may have changed): nothing is stored or "
                "loaded any more until this engine is started again"
            )
        if self._core is not None:
            self._jobs.drain(DRAIN_SECONDS)

    def shutdown(self) -> None:
        """Finish stores that are under way, for a while, and stop the engine. Nothing uses vLLM's
        CPU cache from then on.
        """
        if self._core is None:
            return
        engine, self._core = self._core.engine, None
        self._jobs.drain(DRAIN_SECONDS)
        engine.drain(DRAIN_SECONDS)
        if not engine.close(CLOSE_SECONDS):
            logger.warning(
                "lmkv: rank %d: a disk does not answer; the process ends without it, and what was "
                "being stored may be missing",
                0,
            )

    # -- requests ------------------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._requests[req_context.req_id] = _Request()
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        request = self._requests.pop(req_context.req_id, None)
        if self._core is None:
            return
        self._lookup.forget_request(req_context.req_id)
        if request is not None and not request.has_used_its_head and not self._was_reset:
            # It had all of its prompt from vLLM's own caches.
            self._use(request_keys(req_context), req_context, request.used_at)

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        keys = request_keys(req_context)
        # Without its place in the prompt a chunk cannot be loaded: its file says it, too.
        if self._is_off() or key not in keys:
            return LookupResult.MISS
        found = self._lookup.find(req_context.req_id, key, keys)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        if not self._is_off():
            self._use(keys, req_context, self._used_at(req_context))

    def _use(self, keys: Iterable[OffloadKey], context: ReqContext, used_at: float | None) -> None:
        begins = ((key, self._begin_of(key, context)) for key in keys)
        chunks = [(tier_key(key), begin) for key, begin in begins if begin is not None]
        self._jobs.touch(chunks, used_at)

    def _use_head(self, transfer: TransferJob) -> None:
        """Count as used what lies before the first chunks that a request stores or loads, once:
        vLLM found it in its own caches, and does not say so.
        """
        context = transfer.req_context
        request = self._requests.get(context.req_id)
        if request is None or request.has_used_its_head:
            return
        request.has_used_its_head = True
        keys = request_keys(context)
        first = min((keys[key] for key in transfer.keys if key in keys), default=0)
        head = [key for key, end in keys.items() if end < first]
        self._use(head, context, request.used_at)

    def _used_at(self, context: ReqContext) -> float | None:
        request = self._requests.get(context.req_id)
        return None if request is None else request.used_at

    def _begin_of(self, key: OffloadKey, context: ReqContext) -> int | None:
        """Where a chunk begins in its prompt; None where vLLM does not say: in what other engines
        ask of this one.
        """
        end = request_keys(context).get(key)
        if end is None:
            return None
        tokens = self._chunk_tokens.get(get_offload_group_idx(key), self._config.chunk_tokens)
        return int(max(0, end - tokens))

    # -- transfers -----------------------------------------------------------------------

    def submit_store(self, job_metadata: TransferJob) -> None:
        if self._is_off():
            self._refuse(job_metadata)
            return
        self._use_head(job_metadata)
        places = list(self._places(job_metadata))
        self._jobs.store(job_metadata, places, self._used_at(job_metadata.req_context))

    def submit_load(self, job_metadata: TransferJob) -> None:
        if self._is_off():
            self._refuse(job_metadata)
            return
        self._use_head(job_metadata)
        places = list(self._places(job_metadata))
        self._jobs.load(job_metadata, places, self._used_at(job_metadata.req_context))

    def _is_off(self) -> bool:
        return self._core is None or self._was_reset

    def _refuse(self, transfer: TransferJob) -> None:
        self._refused.append(JobResult(job_id=transfer.job_id, success=False))

    def _places(self, transfer: TransferJob) -> Iterator[Place]:
        for key, row in zip(transfer.keys, transfer.chunk_ids, strict=True):
            begin = self._begin_of(key, transfer.req_context)
            if begin is not None:
                yield Place(key, begin, int(row))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """A store has ended when its rows were copied: it does not wait for the disk."""
        results, self._refused = self._refused, []
        if self._core is not None:
            self._jobs.poll()
            results += self._jobs.take_results()
            if self._core.loads_changed():
                self._lookup.forget()
            if not self._wants_events:
                self._jobs.take_stored()
        return results

    def has_pending_work(self) -> bool:
        return bool(self._refused) or (self._core is not None and self._jobs.pending)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        if self._core is not None:
            self._lookup.begin_step()

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Chunks that have got their files since the last call."""
        stored = self._jobs.take_stored() if self._core is not None else []
        if not stored:
            return ()
        event = OffloadingEvent(
            keys=stored, medium=self.medium, removed=False, locality=self.locality
        )
        return (event,)

    # -- what is said of it --------------------------------------------------------------

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        return definitions()

    def get_stats(self) -> OffloadingConnectorStats | None:
        """Increments of counters since the last call; None if there were none."""
        if self._core is None:
            return None
        now = time.monotonic()
        if not self._jobs.moved and now < self._next_stats:
            return None
        # Counters may still move while a chunk is under way, with nothing to say so.
        self._jobs.moved = self._jobs.under_way
        self._next_stats = now + STATS_SECONDS
        totals = self._core.engine.stats()
        self._core.saw_stores_out(totals["stores_out_of_service"])
        full, self._full = self._full, totals["stores_dropped_full"]
        if full < self._full and self._full_lines.passes():
            notices.full(self._config, totals, self._core.engine.info(), 0)
        totals["stores_dropped"] += self._jobs.dropped - self._jobs.put_back
        totals["lookups_given_up"] = self._lookup.given_up()
        return self._deltas.take(totals)
