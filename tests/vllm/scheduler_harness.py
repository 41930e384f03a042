"""Drives vLLM's real Scheduler with lmkv's real scheduler side; the test plays the workers.

The directory is real: a chunk is there when its file is. The played worker writes files as the
real one would; what a file holds is the worker's concern, so these are empty.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from vllm import SamplingParams
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVEventsConfig,
    KVTransferConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from lmkv.vllm.metadata import Hello, StepMetadata, StepReport
from lmkv.vllm.metrics import HISTOGRAMS, LMKVStats

BLOCK = 32
PER_CHUNK = 4
CHUNK = BLOCK * PER_CHUNK
NAMESPACE = bytes(range(32))
ALWAYS_MOVES = {
    "loads_under_way",
    "stores_under_way",
    "load_tokens_per_second",
    "compute_tokens_per_second",
}

_KV = {"block_size": BLOCK, "num_kv_heads": 2, "head_size": 16, "dtype": torch.float32}
FULL = FullAttentionSpec(**_KV)


def window(tokens):
    """Attention to the last ``tokens`` only."""
    return SlidingWindowSpec(**_KV, sliding_window=tokens)


STATE = MambaSpec(
    block_size=BLOCK,
    shapes=((3, 16), (4, 8)),
    dtypes=(torch.float32, torch.float32),
    page_size_padded=FULL.page_size_bytes,
    mamba_cache_mode="align",
)


@dataclass
class Worker:
    """What the ranks would say: by default every job succeeds one step after it was given."""

    root: Path
    ranks: int = 1
    hold_stores: bool = False
    hold_files: bool = False  # gathered, and not in the directory yet
    hold_loads: bool = False
    by_block: bool = True  # failed loads are reported so; not with several groups
    hold_cancelled: bool = False
    drop_stores: bool = False
    fail_chunks: set[int] = field(default_factory=set)
    late_chunks: set[int] = field(default_factory=set)
    loads: list = field(default_factory=list)
    stores: list = field(default_factory=list)
    gathered: list = field(default_factory=list)
    evicted: set = field(default_factory=set)

    def output(self, metadata: StepMetadata, _scheduled) -> KVConnectorOutput:
        report, output = StepReport(), KVConnectorOutput(finished_recving=set())
        report.evicted, self.evicted = self.evicted, set()
        if not self.hold_stores:
            for store in self.stores:
                report.gathered[store.job] = self.ranks
            self.gathered += self.stores
            self.stores = []
        if not self.hold_files:
            for store in self.gathered:
                report.ended[store.job] = self.ranks
                if self.drop_stores:
                    report.unstored.add(store.job)
                else:
                    put(self.root, store.key, ranks=self.ranks)
            self.gathered = []
        self._load(metadata, report, output)
        self.loads += metadata.loads
        self.stores += metadata.stores
        output.kv_connector_worker_meta = report or None
        return output

    def _load(self, metadata: StepMetadata, report: StepReport, output: KVConnectorOutput) -> None:
        if not self.hold_loads:
            for load in self.loads:
                output.finished_recving.add(load.request_id)
                late = {i for i in self.late_chunks if i < len(load.chunks)}
                report.load_seconds[load.request_id] = 0.01
                if late:
                    report.late[load.request_id] = late
                failed = late | {i for i in self.fail_chunks if i < len(load.chunks)}
                if failed:
                    report.failed_chunks[load.request_id] = failed
                if self.by_block:
                    output.invalid_block_ids.update(load.refused)
                    for index in failed:
                        output.invalid_block_ids.update(load.chunks[index].block_ids)
                elif failed or load.refused:
                    output.failed_recving.add(load.request_id)
            self.loads = []
        if not self.hold_cancelled:
            for load in self.loads:
                if load.request_id in metadata.cancelled:
                    output.finished_recving.add(load.request_id)
            self.loads = [load for load in self.loads if load.request_id not in metadata.cancelled]


class Engine:
    """A scheduler, its connector and a played worker."""

    def __init__(self, model, root, *, blocks=200, hello=True, **options):
        options = {"budget": 8192, "ranks": 1, "spec": None, "groups": [FULL], **options}
        # A played model computes faster than any disk reads.
        extra = {"path": str(root), "chunk_tokens": CHUNK, "load_policy": "always"}
        extra |= options.get("extra", {})
        self.worker = Worker(root, options["ranks"], by_block=len(options["groups"]) == 1)
        self.root = root
        self.config = VllmConfig(
            model_config=ModelConfig(
                model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=8192
            ),
            cache_config=CacheConfig(
                block_size=BLOCK, enable_prefix_caching=options.get("prefix_caching", True)
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=options.get("running", 8),
                max_num_batched_tokens=options["budget"],
                max_model_len=8192,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                async_scheduling=False,
            ),
            parallel_config=ParallelConfig(),
            device_config=DeviceConfig("cpu"),
            kv_transfer_config=KVTransferConfig(
                kv_connector="LMKVConnector",
                kv_connector_module_path="lmkv.vllm",
                kv_role=options.get("role", "kv_both"),
                kv_load_failure_policy=options.get("policy", "recompute"),
                kv_connector_extra_config=extra,
            ),
        )
        # The platform may have its own ideas for a CPU; the test says what it needs.
        self.config.cache_config.enable_prefix_caching = options.get("prefix_caching", True)
        self.config.parallel_config.world_size = options["ranks"]
        self.config.speculative_config = options["spec"]
        if options.get("events"):
            self.config.kv_events_config = KVEventsConfig(
                enable_kv_cache_events=True, publisher="null"
            )
        self.scheduler = self._scheduler(blocks, options["groups"])
        self.scheduler.kv_event_publisher.publish = lambda batch: self.published.extend(
            batch.events
        )
        self.connector = self.scheduler.connector
        self.side = self.connector.scheduler_side
        self.counted = {}
        self.observed = {}
        self.published = []
        self.side.take_stats = partial(self._counting, self.side.take_stats)
        self.pool = self.scheduler.kv_cache_manager.block_pool
        hash_fn = get_hash_fn_by_name("sha256")
        init_none_hash(hash_fn)
        self.hasher = get_request_block_hasher(BLOCK, hash_fn)
        if hello:
            self.greet(*[self.hello()] * options["ranks"])

    def hello(self, namespace=NAMESPACE, refusal="", **other):
        """What a worker says; ``other`` settings than the scheduler's if need be."""
        return Hello(namespace, dataclasses.replace(self.side._config, **other), refusal)

    def greet(self, *hellos):
        """Each rank says what it found, in vLLM's handshake."""
        self.connector.set_xfer_handshake_metadata_pp_aware(
            {(0, rank): hello for rank, hello in enumerate(hellos)}
        )

    def _scheduler(self, blocks, groups):
        cache = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec([f"l{i}"], spec) for i, spec in enumerate(groups)],
        )
        self.config.cache_config.num_gpu_blocks = blocks
        if STATE in groups:
            self.config.cache_config.mamba_cache_mode = "align"
        return Scheduler(
            vllm_config=self.config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(self.config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=True,
        )

    def _counting(self, take):
        """``take``, the scheduler side's, with what it returns added up in ``counted``; the last
        value of a gauge counts. What moves with every request is in ``observed`` instead.
        """
        stats = take()
        for name, value in (stats.data if stats else {}).items():
            always = name in HISTOGRAMS or name in ALWAYS_MOVES
            data = self.observed if always else self.counted
            LMKVStats(data=data).aggregate(LMKVStats(data={name: value}))
        return stats

    def request(self, name, tokens, max_tokens=1, lora=None, cache_salt=None, **params):
        """Make and add a request; ``tokens`` is a length (a prefix of 0, 1, 2, ...) or a list."""
        request = self.unasked(name, tokens, max_tokens, params, lora, cache_salt=cache_salt)
        self.scheduler.add_request(request)
        return request

    def unasked(self, name, tokens, max_tokens=1, params=None, lora=None, **of_request):
        """A request that the scheduler has not seen; ``tokens`` may be embeddings."""
        prompt = range(tokens) if isinstance(tokens, int) else tokens
        is_tokens = not isinstance(prompt, torch.Tensor)
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **(params or {}))
        sampling.update_from_generation_config({}, eos_token_id=1)
        return Request(
            request_id=name,
            prompt_token_ids=[token % 512 for token in prompt] if is_tokens else None,
            prompt_embeds=None if is_tokens else prompt,
            sampling_params=sampling,
            pooling_params=None,
            lora_request=lora,
            block_hasher=self.hasher,
            **of_request,
        )

    def step(self):
        """One pass: schedule, the played worker, update. Returns (scheduler output, metadata)."""
        output = self.scheduler.schedule()
        metadata = output.kv_connector_metadata
        ids = list(output.num_scheduled_tokens)
        sampled = []
        for request_id in ids:
            request = self.scheduler.requests[request_id]
            done = request.num_computed_tokens >= request.num_tokens
            sampled.append([7] if done else [])
        runner = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=sampled,
            kv_connector_output=self.worker.output(metadata, output),
        )
        self.scheduler.update_from_output(output, runner)
        return output, metadata

    def run(self, limit=50):
        """Step until nothing is left to do; returns all metadata."""
        steps = []
        while self.scheduler.has_requests():
            steps.append(self.step()[1])
            assert len(steps) < limit, "the engine does not come to rest"
        return steps

    def abort(self, request):
        self.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)

    @property
    def free_blocks(self):
        return self.pool.get_num_free_blocks()

    def assert_at_rest(self):
        """Nothing is held: every block but the null block is free, no state is kept."""
        assert self.free_blocks == self.pool.num_gpu_blocks - 1
        assert all(block.ref_cnt == 0 for block in self.pool.blocks if not block.is_null)
        assert not self.scheduler.requests
        assert not self.side._waiting._found
        assert not self.side._loads._loading
        assert not self.side._loads._keys
        if self.side._stores is not None:
            assert not self.side._stores._requests
            assert not self.side._stores._pinned
            assert not self.side._stores._storing
            assert not self.side._stores._gathered
            assert not self.side._stores._in_memory
            assert not self.side._stores._ended
            assert not self.side._stores._unstored


def seconds_per_call(function, calls=200, batches=10):
    """CPU time of one call, from the best of several batches: the machine may be busy."""
    best = float("inf")
    for _ in range(batches):
        begin = time.thread_time()
        for _ in range(calls):
            function()
        best = min(best, (time.thread_time() - begin) / calls)
    return best


def chunk_file(root, key, rank=0):
    name = key.hex()
    return root / "v1" / NAMESPACE.hex()[:16] / f"r{rank}" / name[:3] / f"{name}.kv"


def put(root, *keys, ranks=1):
    """Make the directory say that the chunks are there."""
    for key in keys:
        for rank in range(ranks):
            file = chunk_file(root, key, rank)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def key_of(request, blocks):
    """The key of the chunk of ``request`` that ends after ``blocks`` blocks."""
    return request.block_hashes[blocks - 1]
