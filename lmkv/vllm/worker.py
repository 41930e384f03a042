"""The connector's worker side: hands jobs to the C++ engine and reports what became of them.

Runs on the worker's own thread. Every call but ``register`` and ``shutdown`` returns in
microseconds: the engine has threads of its own and is polled once a step. No call of a step
raises: a store that cannot be is dropped, a load that cannot be fails and is computed.
"""

import time
from collections.abc import Mapping, Sequence

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import KVCacheConfig

from lmkv._C import (
    Completion,
    CompletionKind,
    DeviceError,
    Engine,
    EngineOptions,
    TransferOptions,
)
from lmkv.config import Config
from lmkv.namespace import Namespace
from lmkv.remote.carriers import Carriers
from lmkv.remote.store import open_store
from lmkv.tuning import Tuning, load_tuning
from lmkv.vllm import identity, notices
from lmkv.vllm.activity import Throttle
from lmkv.vllm.core import core_settings, remote_settings, write_meta
from lmkv.vllm.late_loads import LateLoads
from lmkv.vllm.layout import Layout, LayoutError, page_order, read_layouts
from lmkv.vllm.metadata import NOTHING, Hello, Load, StepMetadata, StepReport, Store, Use
from lmkv.vllm.metrics import Deltas, LMKVStats
from lmkv.vllm.roots import RootWatch

logger = init_logger("vllm.lmkv")

# How long a worker that is shut down waits for stores that are under way.
SHUTDOWN_SECONDS = 3.0

# And, after that, for a disk to answer.
CLOSE_SECONDS = 1.0

# While jobs are under way, counters are looked at no more often than this.
OFTEN_SECONDS = 0.05

# And where nothing is, the engine is: directories come back, others evict.
IDLE_SECONDS = 0.25


class WorkerSide:
    """See the module. Without an engine (nothing can be cached) every call does nothing."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, config: Config
    ) -> None:
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._config = config
        parallel = vllm_config.parallel_config
        self._rank = parallel.rank % parallel.world_size  # within this engine
        self._hello: Hello | None = None
        self._said_hello = False
        self._engine: Engine | None = None
        self._on_cuda = False
        self._token_bytes = 1  # of this rank's KV
        self._metadata = NOTHING  # of this step
        self._planned: Sequence[Store] = ()  # by it, and not submitted yet
        self._stores: dict[int, int] = {}  # the engine's jobs to the scheduler's
        self._loads: dict[int, Load] = {}
        self._cancelled: set[int] = set()  # of the engine's jobs
        self._watch = LateLoads()
        self._roots = RootWatch(config.path, self._rank, remote=config.remote)
        self._carriers: Carriers | None = None
        self._unloadable: list[int] = []  # directories, as the engine last said
        self._poll_at = 0.0
        self._unstorable = 0
        self._report = StepReport()
        self._finished_loads: set[str] = set()
        # What did not arrive, as vLLM is to be told: blocks, or the whole load with several groups,
        # whose blocks vLLM cannot tell apart.
        self._by_block = len(kv_cache_config.kv_cache_groups) == 1
        self._failed_blocks: set[int] = set()
        self._failed_loads: set[str] = set()
        self._deltas = Deltas()
        self._counted_at = 0.0
        self._counters_moved = False
        events = vllm_config.kv_events_config
        self._tells_evictions = events is not None and events.enable_kv_cache_events
        self._error_lines = Throttle()
        self._said_lost = False
        self._full_lines = Throttle()

    # -- start and end -------------------------------------------------------------------

    def register(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Find out what the KV is made of and start the engine. Blocks on the disk.

        Raises ConfigError for settings that cannot work. A model or layout that cannot be
        cached is no error: ``hello`` says so and the engine serves it untouched.
        """
        refusal = identity.refusal(
            self._vllm_config, self._kv_cache_config, self._config.chunk_tokens
        )
        if refusal:
            self._refuse(refusal)
            return
        layers = identity.layers_in_order(self._kv_cache_config)
        try:
            layout = read_layouts(kv_caches, layers, self._kv_cache_config.num_blocks)
        except LayoutError as error:
            self._refuse(str(error))
            return
        if layout.device.type not in {"cpu", "cuda"}:
            self._refuse(f"lmkv cannot copy {layout.device.type} memory")
            return
        try:
            self._start(layout, page_order(kv_caches[layers[0][0]]))
        except DeviceError as error:  # the model runs on it all the same
            self._refuse(f"the device cannot be used for copies: {error}")

    def _refuse(self, reason: str) -> None:
        self._hello = Hello(b"", self._config, reason)

    def _start(self, layout: Layout, order: str) -> None:
        config = self._config
        block_tokens = self._kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        blocks_per_chunk = config.blocks_per_chunk(block_tokens)
        groups = self._kv_cache_config.kv_cache_groups
        namespace = identity.make_namespace(
            self._vllm_config, config, layout, order, block_tokens, groups
        )
        self._on_cuda = layout.device.type == "cuda"
        self._token_bytes = max(1, layout.block_bytes // block_tokens)
        self._engine = Engine(
            EngineOptions(
                namespace=namespace.digest,
                rank=self._rank,
                segments=layout.segments(),
                block_count=layout.block_count,
                block_tokens=block_tokens,
                blocks_per_chunk=blocks_per_chunk,
                device=f"cuda:{layout.device.index or 0}" if self._on_cuda else "host",
                transfer=self._transfer_options(layout.device),
                **core_settings(config),
                **remote_settings(config),
            )
        )
        self._carriers = self._start_carriers(self._engine, namespace)
        info = self._engine.info()
        left_out = self._roots.left_out(info)
        self._unloadable = self._engine.roots_out_of_service()
        self._unstorable = len(left_out)
        self._hello = Hello(
            namespace.digest,
            config,
            roots_out=self._roots.update(info),
            slabs=self._engine.stats()["slabs_total"],
            arena_slab_bytes=int(info["arena_slab_bytes"]),
        )
        if info["arena_error"]:
            notices.no_arena(self._rank, info["arena_error"])
        notices.slow(config, info, self._rank)
        if self._rank:
            return
        notices.closed_to_group(config, left_out)
        write_meta(namespace, config, identity.about(self._vllm_config, config), left_out)
        if identity.has_random_seed(self._vllm_config):
            notices.random_seed(self._vllm_config.cache_config.prefix_caching_hash_algo)
        notices.started(
            config,
            info,
            namespace=namespace.short,
            chunk_bytes=layout.block_bytes * blocks_per_chunk,
            ranks=self._vllm_config.parallel_config.world_size,
        )

    def _start_carriers(self, engine: Engine, namespace: Namespace) -> Carriers | None:
        """Threads for what the engine asks of a remote engine; directories need none."""
        place = self._config.remote_place
        if place is None or place.directory:
            return None
        digest, rank = namespace.digest, self._rank
        return Carriers(
            engine,
            lambda: open_store(place),
            lambda key: place.name_of(digest, rank, key),
            lambda problem: notices.remote(str(place), rank, problem),
            bandwidth=self._config.remote_bandwidth,
        )

    def _transfer_options(self, device: torch.device) -> TransferOptions:
        """How to copy, with what was measured of this kind of GPU, if anything was."""
        tuning = load_tuning(torch.cuda.get_device_name(device)) if self._on_cuda else None
        return (tuning or Tuning()).options(self._config.transfer)

    @property
    def hello(self) -> Hello | None:
        return self._hello

    def shutdown(self) -> None:
        """Finish stores that are under way, for a while, and stop the engine."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        engine.drain(SHUTDOWN_SECONDS)
        if self._carriers is not None:
            self._carriers.stop()
        is_closed = engine.close(CLOSE_SECONDS)
        if self._carriers is not None:
            self._carriers.join()
        if not is_closed:
            logger.warning(
                "lmkv: rank %d: a disk or the remote tier does not answer; the process ends "
                "without it, and what was being stored may be missing",
                self._rank,
            )

    # -- every step ----------------------------------------------------------------------

    def begin_step(self, metadata: StepMetadata) -> None:
        """Take the step's stores, to be submitted when its forward pass is queued.

        What the last step left is submitted first: vLLM does not end every step with
        ``wait_for_save`` (not on all pipeline ranks, with speculation). Its forward pass is on
        the compute stream by now, and its blocks are held until they are gathered.
        """
        if self._planned:
            self.submit_stores()
        self._metadata = metadata
        if metadata is NOTHING:
            return
        self._planned = metadata.stores
        self._report.timed = metadata.timed

    def submit_stores(self) -> None:
        """Queue the step's stores, once, behind what is on the compute stream now."""
        if not self._planned:
            return
        stores, self._planned = self._planned, ()
        if self._engine is None:
            return
        stream = self._stream()
        for store in stores:
            try:
                job = self._engine.store(
                    store.key, store.token_begin, store.block_ids, stream, store.used_at
                )
            except Exception as error:  # noqa: BLE001 - nothing may end the engine in a step
                self._say("a store", error)
                job = 0
            if job:
                self._stores[job] = store.job
            else:  # no host memory was free, or worse
                self._report.gathered[store.job] = 1
                self._report.ended[store.job] = 1
                self._report.unstored.add(store.job)
        self._counters_moved = True

    def start_loads(self) -> None:
        """Queue the step's loads; they write to their blocks behind the compute stream's work.
        Give up those that nobody waits for any more.
        """
        metadata = self._metadata
        if metadata is NOTHING:
            return
        self._use(metadata.uses)
        self._begin_loads(metadata)
        if self._engine is not None and metadata.cancelled:
            for job, load in self._loads.items():
                if load.request_id in metadata.cancelled:
                    self._cancelled.add(job)
                    self._engine.cancel(job)

    def _begin_loads(self, metadata: StepMetadata) -> None:
        if not metadata.loads:
            return
        stream = self._stream()
        for load in metadata.loads:
            if self._engine is None or not load.chunks:
                self._load_ended(load, ())
                continue
            try:
                job = self._engine.load(
                    [chunk.as_tuple() for chunk in load.chunks], stream, load.used_at
                )
            except Exception as error:  # noqa: BLE001 - nothing may end the engine in a step
                self._say("a load", error)
                self._load_ended(load, range(len(load.chunks)))
            else:
                self._loads[job] = load
                if load.within is not None:
                    self._watch.begin(job, load, self._engine.stats())
        self._counters_moved = True

    def _use(self, uses: Sequence[Use]) -> None:
        if self._engine is None:
            return
        for use in uses:
            try:
                self._engine.touch(use.chunks, use.used_at)
            except Exception as error:  # noqa: BLE001 - nothing may end the engine in a step
                self._say("a renewal of files' times", error)

    def _say(self, what: str, error: Exception) -> None:
        if self._error_lines.passes():
            logger.error("lmkv: %s could not be started: %s", what, error)

    def _stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream) if self._on_cuda else 0

    def poll(self) -> set[str]:
        """Take in what the engine has completed; the requests whose loads ended."""
        engine = self._engine
        is_busy = self._stores or self._loads
        if engine is not None and (is_busy or time.monotonic() >= self._poll_at):
            self._poll(engine)
        finished, self._finished_loads = self._finished_loads, set()
        return finished

    def _poll(self, engine: Engine) -> None:
        self._poll_at = time.monotonic() + IDLE_SECONDS
        self._take(engine.poll())
        if self._watch:
            self._give_up_late()
        if self._tells_evictions:
            self._report.evicted.update(engine.take_evicted())
        unloadable = engine.roots_out_of_service()
        if unloadable != self._unloadable:
            self._unloadable = unloadable
            self._watch_roots()

    def _take(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            self._counters_moved = True
            if completion.kind is CompletionKind.LOADED:
                self._loaded(completion)
            else:
                self._stored(completion)

    def _give_up_late(self) -> None:
        """Give up the loads that are not worth waiting for any more."""
        assert self._engine is not None
        late = self._watch.take_late(self._engine.stats)
        for job in late:
            self._engine.cancel(job)
        if late:
            self._take(self._engine.poll())
        read, seconds, is_remote = self._watch.take_read(self._engine.stats)
        if read:
            self._report.read_after = (read // self._token_bytes, seconds, is_remote)

    def _watch_roots(self) -> None:
        assert self._engine is not None
        self._report.roots_out[self._rank] = self._roots.update(self._engine.info())

    def _say_failed(self, completion: Completion) -> None:
        if completion.error and self._error_lines.passes():
            what = completion.kind.name.lower()
            logger.warning(
                "lmkv: rank %d: a chunk was not %s: %s", self._rank, what, completion.error
            )

    def _loaded(self, completion: Completion) -> None:
        load = self._loads.pop(completion.job)
        self._watch.end(completion.job)
        if completion.job in self._cancelled:  # its request is gone, and its blocks are nobody's
            self._cancelled.discard(completion.job)
            self._finished_loads.add(load.request_id)
            return
        self._report.load_seconds[load.request_id] = completion.seconds
        self._report.memory_chunks[load.request_id] = set(completion.memory_chunks)
        if completion.remote_chunks:
            self._report.read_remotely.add(load.request_id)
        if completion.cancelled_chunks:
            self._report.late[load.request_id] = set(completion.cancelled_chunks)
        if len(completion.failed_chunks) > len(completion.cancelled_chunks):
            self._say_failed(completion)
        self._load_ended(load, completion.failed_chunks)

    def _stored(self, completion: Completion) -> None:
        self._say_failed(completion)
        if completion.kind is CompletionKind.GATHERED:
            self._report.gathered[self._stores[completion.job]] = 1
            return
        job = self._stores.pop(completion.job)
        self._report.ended[job] = 1
        if completion.error:
            self._report.unstored.add(job)

    def _load_ended(self, load: Load, failed: Sequence[int]) -> None:
        self._finished_loads.add(load.request_id)
        if failed:
            self._report.failed_chunks[load.request_id] = set(failed)
        if not self._by_block:
            if failed or load.refused:
                self._failed_loads.add(load.request_id)
            return
        self._failed_blocks.update(load.refused)
        for index in failed:
            self._failed_blocks.update(load.chunks[index].block_ids)

    def take_failed_blocks(self) -> set[int]:
        """Block ids of the loads that ``poll`` last returned whose bytes did not arrive."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_failed_loads(self) -> set[str]:
        """The requests among those that ``poll`` last returned that nothing counts of."""
        failed, self._failed_loads = self._failed_loads, set()
        return failed

    def take_report(self) -> StepReport | None:
        """What the scheduler's side should know, since the last call; None if nothing."""
        if not self._said_hello and self._hello is not None:
            self._said_hello = True
            self._report.hellos[self._rank] = self._hello
        if not self._report:
            return None
        report, self._report = self._report, StepReport()
        return report

    def take_stats(self) -> LMKVStats | None:
        """Counter increments since they were last asked for; None if there were none, or while
        jobs are under way and it was just now.
        """
        if self._engine is None or not self._counters_moved:
            return None
        # Counters may still move while a job is under way, with no completion to say so.
        self._counters_moved = bool(self._stores or self._loads)
        now = time.monotonic()
        if self._counters_moved and now < self._counted_at + OFTEN_SECONDS:
            return None
        self._counted_at = now
        totals = self._engine.stats()
        # Chunks may still be on their way between tiers.
        self._counters_moved = self._counters_moved or totals["jobs_in_flight"] > 0
        if totals["device_lost"] and not self._said_lost:
            self._said_lost = True
            logger.error(
                "lmkv: rank %d: %s. Nothing is stored or loaded any more: restart the engine.",
                self._rank,
                self._engine.info()["device_failure"],
            )
        if totals["stores_out_of_service"] != self._unstorable:
            self._unstorable = totals["stores_out_of_service"]
            self._watch_roots()
        stats = self._deltas.take(totals)
        dropped = stats is not None and stats.data.get("stores_dropped_full")
        if dropped and self._full_lines.passes():
            notices.full(self._config, totals, self._engine.info(), self._rank)
        return stats
