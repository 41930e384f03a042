"""vLLM's real TieringOffloadingManager over its real CPU cache, with an LMKVTier below it.

The test plays the scheduler's connector and the GPU: it calls the manager in the connector's order,
and writes to rows of the CPU cache what a worker would have copied there.
"""

import hashlib
import itertools
import os
import time

import numpy as np
from vllm.v1.kv_offload.base import (
    LookupResult,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

BLOCK = 16
PER_CHUNK = 4
CHUNK = BLOCK * PER_CHUNK
BLOCK_BYTES = 16 << 10  # of one worker
ROWS = 64
FILE_BYTES = 4096 + BLOCK_BYTES * PER_CHUNK

_numbers = itertools.count()


def config_of(
    model,
    *tiers,
    tokens_per_block=(BLOCK,),
    layers=("layers.0.attn", "layers.1.attn"),
    rows=ROWS,
    workers=1,
    events=False,
    dtype="bfloat16",
    layout="LBNHC",
    **extra,
):
    """As ``build_offloading_config`` makes it of vLLM's own configuration."""
    return OffloadingConfig(
        groups=tuple(
            OffloadingGroupConfig(tokens, tuple(f"{group}.{name}" for name in layers), group)
            for group, tokens in enumerate(tokens_per_block)
        ),
        worker_kv_bytes_per_block=BLOCK_BYTES,
        enable_kv_cache_events=events,
        extra_config={
            "cpu_bytes_to_use": rows * BLOCK_BYTES * PER_CHUNK * workers,
            "secondary_tiers": list(tiers),
            **extra,
        },
        engine_id=f"lmkv-test-{os.getpid()}-{next(_numbers)}",
        model=OffloadingModelConfig(str(model), dtype),
        cache=OffloadingCacheConfig(tokens_per_hash=BLOCK, blocks_per_chunk=PER_CHUNK),
        parallel=OffloadingParallelConfig(
            rank=0, world_size=workers, tp_size=workers, pp_size=1, pcp_size=1, dcp_size=1,
            data_parallel_index=0, data_parallel_size=1, data_parallel_rank_local=None,
            is_parallelism_agnostic=False,
        ),
        kv_cache_layout=layout,
    )  # fmt: skip


def tier(root, **settings):
    """An entry of ``secondary_tiers``."""
    return {
        "type": "LMKVTier",
        "module_path": "lmkv.vllm",
        "path": str(root),
        "host_memory": "8MiB",
        "free_space_floor": 0,
        **settings,
    }


def content(key, row_bytes):
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    return np.random.default_rng(seed).integers(-128, 128, row_bytes, dtype=np.int8)


class Prompt:
    """A request's context: its chunks' keys, as the connector's scheduler makes them of hashes."""

    def __init__(self, name, text, chunks, groups=1):
        self.context = ReqContext(req_id=name)
        self.keys = []
        for group in range(groups):
            for index in range(chunks):
                block_hash = hashlib.sha256(f"{text} {index}".encode()).digest()
                key = make_offload_key(block_hash, group)
                self.context.set_offload_key_position(key, (index + 1) * CHUNK)
                self.keys.append(key)


class Native:
    """One engine's offloading manager."""

    def __init__(self, config):
        self.manager = TieringOffloadingSpec(config).get_manager()
        (self.tier,) = self.manager.secondary_tiers
        view = self.manager.primary_tier.get_kv_memoryview()
        self.row_bytes = view.strides[0]
        self.slowest = 0.0
        self.totals = {}
        self.gauges = {}
        self._names = itertools.count()

    def rows(self):
        return np.asarray(self.manager.primary_tier.get_kv_memoryview())

    def prompt(self, text, chunks, groups=1):
        """A new request; what its chunks hold follows from ``text``."""
        prompt = Prompt(f"request-{next(self._names)}", text, chunks, groups)
        self.timed(self.manager.on_new_request, prompt.context)
        return prompt

    def timed(self, call, *args):
        begin = time.monotonic()
        try:
            return call(*args)
        finally:
            self.slowest = max(self.slowest, time.monotonic() - begin)

    def step(self):
        self.timed(self.manager.on_schedule_end, ScheduleEndContext([], []))
        stats = self.manager.get_stats()
        if stats is None:
            return
        for name, values in stats.data["data"].items():
            for labels, value in values.items():
                if not name.startswith("vllm:lmkv_"):
                    continue
                assert labels == ("1:LMKVTier",)
                short = name.removeprefix("vllm:lmkv_").removesuffix("_total")
                if stats.data["types"][name] == "gauge":
                    self.gauges[short] = value
                else:
                    self.totals[short] = self.totals.get(short, 0) + value

    def until(self, condition, seconds=20.0):
        """Step until it holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it does not come about"
            self.step()
            time.sleep(0.001)

    def compute(self, prompt):
        """What the GPU computed reaches the CPU cache, and goes on to the tier."""
        context = prompt.context
        output = self.timed(self.manager.prepare_store, prompt.keys, context)
        rows = self.rows()
        for key, row in zip(output.keys_to_store, output.store_spec.block_ids, strict=True):
            rows[row] = content(key, self.row_bytes)
        del rows
        if output.keys_to_store:
            self.timed(self.manager.complete_store, output.keys_to_store, context)

    def idle(self, seconds=20.0):
        """Until the manager wants no further steps."""
        self.step()
        self.until(lambda: not self.manager.has_pending_work(), seconds)

    def settle(self):
        """Until everything that was begun has ended, on the disk too."""
        self.idle()
        self.until(lambda: not self.tier._jobs.under_way)
        self.step()

    def store(self, text, chunks, groups=1):
        prompt = self.prompt(text, chunks, groups)
        self.compute(prompt)
        self.finish(prompt)
        self.settle()
        return prompt

    def finish(self, prompt):
        self.manager.on_request_finished(prompt.context)

    def look_up(self, prompt):
        """One step's questions, as the connector asks them: up to the first miss."""
        answers = []
        for key in prompt.keys:
            answers.append(self.timed(self.manager.lookup, key, prompt.context))
            if answers[-1] is LookupResult.MISS:
                break
        return answers

    def load(self, text, chunks, groups=1, seconds=20.0):
        """How many leading chunks of a prompt come, with the bytes that they should have."""
        prompt = self.prompt(text, chunks, groups)
        deadline = time.monotonic() + seconds
        while True:
            answers = self.look_up(prompt)
            if all(answer in {LookupResult.HIT, LookupResult.MISS} for answer in answers):
                break
            assert time.monotonic() < deadline, f"no answer: {answers}"
            self.step()
            time.sleep(0.001)
        hits = prompt.keys[: answers.count(LookupResult.HIT)]
        self.check(prompt, hits)
        self.finish(prompt)
        self.step()
        return len(hits)

    def check(self, prompt, keys):
        spec = self.manager.prepare_load(keys, prompt.context)
        rows = self.rows()
        for key, row in zip(keys, spec.block_ids, strict=True):
            assert np.array_equal(rows[row], content(key, self.row_bytes)), "other bytes"
        del rows
        self.manager.complete_load(keys, prompt.context)

    def close(self):
        self.manager.shutdown()


def files(root):
    return sorted(root.glob("v1/*/r0/*/*.kv"))
