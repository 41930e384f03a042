"""LMKVTier as vLLM's own offloading connector calls it: what the rest of vLLM must go on to do."""

import hashlib
import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scheduler_harness import Engine
from tier_harness import tier
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)

BLOCK = 32
PER_CHUNK = 4
CHUNK = BLOCK * PER_CHUNK
_numbers = itertools.count()
SPEC = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=16, dtype=torch.float32)


class OfVllm:
    """The scheduler's side of OffloadingConnector, made as by vLLM; the test plays the GPU."""

    def __init__(self, model, root):
        self.engine = Engine(model, root, hello=False)  # makes requests
        config = self.engine.config
        row_bytes = SPEC.page_size_bytes * PER_CHUNK
        config.kv_transfer_config = KVTransferConfig(
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            engine_id=f"lmkv-test-of-vllm-{os.getpid()}-{next(_numbers)}",
            kv_connector_extra_config={
                "spec_name": "TieringOffloadingSpec",
                "cpu_bytes_to_use": 64 * row_bytes,
                "blocks_per_chunk": PER_CHUNK,
                "secondary_tiers": [tier(root)],
            },
        )
        blocks = 200
        cache = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[
                KVCacheTensor(
                    SPEC.page_size_bytes * blocks, ["l0"], SPEC.page_size_bytes * blocks,
                    SPEC.page_size_bytes,
                )
            ],
            kv_cache_groups=[KVCacheGroupSpec(["l0"], SPEC)],
        )  # fmt: skip
        self.connector = KVConnectorFactory.create_connector(
            config, KVConnectorRole.SCHEDULER, cache
        )
        self.side = self.connector.connector_scheduler
        self.manager = self.side.manager

    def request(self, name, tokens):
        request = self.engine.request(name, tokens)
        self.connector.on_new_request(request)
        return request

    def step(self):
        output = SchedulerOutput.make_empty()
        self.connector.build_connector_meta(output)

    def found(self, request):
        """The tokens that can be loaded, and the steps that it took to know."""
        for steps in range(10_000):
            tokens, _ = self.connector.get_num_new_matched_tokens(request, 0)
            if tokens is not None:
                return tokens, steps
            self.step()
        raise AssertionError("no answer")

    def rows(self):
        return np.asarray(self.manager.primary_tier.get_kv_memoryview())

    def compute(self, request):
        """The request's chunks reach the CPU cache."""
        status = self.side._req_status[request.request_id]
        (group,) = status.group_states
        output = self.manager.prepare_store(list(group.offload_keys), status.req_context)
        for key, row in zip(output.keys_to_store, output.store_spec.block_ids, strict=True):
            self.rows()[row] = bytes_of(key)
        self.manager.complete_store(output.keys_to_store, status.req_context)
        while self.connector.has_pending_push_work():
            self.step()
        return output.keys_to_store

    def bytes_at(self, request, keys):
        context = self.side._req_status[request.request_id].req_context
        spec = self.manager.prepare_load(keys, context)
        found = [int(self.rows()[row][0]) for row in spec.block_ids]
        self.manager.complete_load(keys, context)
        return found


def bytes_of(key):
    return hashlib.sha256(key).digest()[0] - 128


@pytest.fixture
def make(tiny_model, root):
    made = []

    def make():
        made.append(OfVllm(tiny_model, root))
        return made[-1]

    yield make
    for one in made:
        one.connector.shutdown()


def test_vllms_own_connector_stores_and_finds(make):
    first = make()
    request = first.request("a", 5 * CHUNK + 7)
    assert first.found(request) == (0, 0)
    keys = first.compute(request)
    assert len(keys) == 5
    first.connector.shutdown()
    second = make()
    again = second.request("b", 5 * CHUNK + 9)
    tokens, steps = second.found(again)
    assert tokens == 5 * CHUNK
    assert steps > 0  # it was promoted meanwhile
    assert second.bytes_at(again, keys) == [bytes_of(key) for key in keys]
    assert second.found(second.request("c", [5, *range(3 * CHUNK)]))[0] == 0


def test_what_it_says_of_metrics_is_what_vllm_takes(make):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

    one = make()
    request = one.request("a", 3 * CHUNK)
    one.found(request)
    one.compute(request)
    registry = CollectorRegistry()

    def registered(kind):
        return lambda **options: kind(registry=registry, **options)

    vllm = SimpleNamespace(kv_transfer_config=one.engine.config.kv_transfer_config)
    metrics = type(one.connector).build_prom_metrics(
        vllm,
        {Counter: registered(Counter), Gauge: registered(Gauge), Histogram: registered(Histogram)},
        ["engine"],
        {0: ["0"]},
    )
    tier_of = one.manager.secondary_tiers[0]
    while tier_of._jobs.under_way:
        one.step()
        tier_of.get_finished_jobs()
    metrics.observe(one.connector.get_kv_connector_stats().data)
    text = generate_latest(registry).decode()
    assert 'vllm:lmkv_chunks_stored_total{engine="0",tier="1:LMKVTier"} 3.0' in text
