"""lmkv's worker side over real tensors, for vLLM's real scheduler in ``scheduler_harness``.

The two sides, the C++ engine and the files are real; only the model is not: it "computes" a block
by writing bytes that follow from the block's hash.
"""

import time

import torch
from scheduler_harness import BLOCK
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.worker.utils import allocate_kv_cache

LAYERS = ["model.layers.0.attn", "model.layers.1.attn"]  # of the first group
SPEC = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=16, dtype=torch.float32)


class RealWorker:
    """The worker's connector over real tensors, called in the order of vLLM's model runner."""

    def __init__(self, engine, layout=KVCacheLayout.LBHNC, blocks=200, rank=0):
        page = SPEC.page_size_bytes
        strides = (page * blocks, page) if layout.is_layer_compact else (page, page * len(LAYERS))
        specs = [group.kv_cache_spec for group in engine.scheduler.kv_cache_config.kv_cache_groups]
        # As vLLM has it: all groups in the same memory, the last of three a layer short.
        self.layers = [layers_of(group) for group in range(len(specs))]
        if len(specs) > 2:
            self.layers[-1] = self.layers[-1][:1]
        size = page * blocks * len(LAYERS)
        cache = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[KVCacheTensor(size, layers, *strides) for layers in self.layers],
            kv_cache_groups=[
                KVCacheGroupSpec(layers, spec)
                for layers, spec in zip(self.layers, specs, strict=True)
            ],
        )
        self.engine = engine
        self.cache = cache
        self.caches = allocate_kv_cache(cache, torch.device("cpu"), layout)
        engine.config.parallel_config.rank = rank
        self.connector = KVConnectorFactory.create_connector(
            engine.config, KVConnectorRole.WORKER, cache
        )
        self.connector.register_kv_caches(self.caches)
        self.totals = {}
        self.forgets_wait_for_save = False  # as vLLM's V1 runner on some ranks
        engine.worker = self

    def output(self, metadata, scheduled):
        connector, output = self.connector, KVConnectorOutput()
        connector.handle_preemptions(metadata)
        connector.bind_connector_metadata(metadata)
        self.compute(scheduled)
        connector.start_load_kv(None)
        if not self.forgets_wait_for_save:
            connector.wait_for_save()
        results = connector.get_transfer_results(scheduled.finished_req_ids)
        output.finished_recving = results.finished_recving
        output.failed_recving = results.failed_recving
        output.invalid_block_ids = connector.get_block_ids_with_load_errors()
        output.kv_connector_stats = connector.get_kv_connector_stats()
        output.kv_connector_worker_meta = connector.build_connector_worker_meta()
        connector.clear_connector_metadata()
        for name, count in (output.kv_connector_stats or type("", (), {"data": {}})).data.items():
            self.totals[name] = self.totals.get(name, 0) + count
        time.sleep(0.0005)
        return output

    def compute(self, scheduled):
        for request_id, tokens in scheduled.num_scheduled_tokens.items():
            request = self.engine.scheduler.requests[request_id]
            end = request.num_computed_tokens  # advanced by schedule()
            of_groups = self.engine.scheduler.kv_cache_manager.get_block_ids(request_id)
            for layers, blocks in zip(self.layers, of_groups, strict=True):
                for index in range((end - tokens) // BLOCK, min(end // BLOCK, len(blocks))):
                    for layer in layers:
                        page = content(request.block_hashes[index], number(layer))
                        self.caches[layer][blocks[index]] = page

    def block(self, block_id, group=0):
        return torch.stack([self.caches[layer][block_id] for layer in self.layers[group]])

    def expected(self, block_hash, group=0):
        """What ``block`` should give."""
        return torch.stack([content(block_hash, number(layer)) for layer in self.layers[group]])


def layers_of(group):
    first = group * len(LAYERS)
    return [f"model.layers.{first + i}.attn" for i in range(len(LAYERS))]


def number(layer):
    return int(layer.split(".")[2])


def content(block_hash, layer):
    seed = int.from_bytes(block_hash[:6], "little") + layer
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SPEC.num_kv_heads, BLOCK, 2 * SPEC.head_size, generator=generator)


def run(engine):
    """Until the engine is at rest and every store has reached the disk."""
    worker, scheduler = engine.worker, engine.scheduler
    deadline = time.monotonic() + 20
    # An idle engine waits for a slow disk no longer than STORE_LINGER_SECONDS.
    stores = engine.side._stores
    while scheduler.has_requests() or (stores is not None and stores.unfinished_jobs):
        engine.step()
        assert time.monotonic() < deadline
    engine.assert_at_rest()
    return worker.totals


def files(root):
    return sorted(root.glob("v1/*/r0/*/*.kv"))


def checked_prompt(engine, name, tokens):
    """Run a prompt and compare every whole block of it in the cache with what it should hold; of
    windows, what they still have.
    """
    seen = {}
    request = engine.request(name, tokens)
    finished = engine.side.finished

    def remember(request_id):
        seen[request_id] = engine.scheduler.kv_cache_manager.get_block_ids(request_id)
        finished(request_id)

    engine.side.finished = remember
    run(engine)
    engine.side.finished = finished
    assert request.is_finished()
    for group, blocks in enumerate(seen[name]):
        for index, block_hash in enumerate(request.block_hashes):
            if not blocks[index]:  # the null block
                continue
            expected = engine.worker.expected(block_hash, group)
            found = engine.worker.block(blocks[index], group)
            assert torch.equal(found, expected), f"block {index} of group {group}"
        assert any(blocks[: len(request.block_hashes)]), "nothing was compared"
    return request
