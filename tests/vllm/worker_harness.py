"""lmkv's worker side over real tensors, for vLLM's real scheduler in ``scheduler_harness``.

The two sides, the C++ engine and the files are real; only the model is not: it "computes" a block
by writing bytes that follow from the block's hash.
"""

import time

import torch
from scheduler_harness import BLOCK, STATE
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
        self.specs = specs
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
            begin = end - tokens
            of_groups = self.engine.scheduler.kv_cache_manager.get_block_ids(request_id)
            for group, blocks in enumerate(of_groups):
                self._read(request, group, blocks, begin)
                if self.specs[group] == STATE:
                    last = -(-end // BLOCK) - 1
                    self._write(group, blocks[last], state_behind(request, end))
                    continue
                for index in range(begin // BLOCK, min(end // BLOCK, len(blocks))):
                    self._write(group, blocks[index], request.block_hashes[index])

    def _read(self, request, group, blocks, begin):
        """What is needed to go on behind ``begin`` tokens is what was written there."""
        if self.specs[group] == STATE:
            if begin:
                self.check(group, blocks[-(-begin // BLOCK) - 1], state_behind(request, begin))
            return
        manager = self.engine.scheduler.kv_cache_manager.coordinator.single_type_managers[group]
        for index in range(manager.get_num_skipped_tokens(begin) // BLOCK, begin // BLOCK):
            self.check(group, blocks[index], request.block_hashes[index])

    def _write(self, group, block_id, what):
        assert block_id, "the null block is nobody's"
        for layer in self.layers[group]:
            self.caches[layer][block_id] = content(what, number(layer), self.caches[layer])

    def check(self, group, block_id, what):
        """The block is what ``what`` (a block's hash) stands for."""
        assert block_id, "the null block is nobody's"
        for layer in self.layers[group]:
            expected = content(what, number(layer), self.caches[layer])
            assert torch.equal(self.caches[layer][block_id], expected), (group, block_id)


def state_behind(request, tokens):
    """What stands for the state there: that of a block's end is the block's hash."""
    if tokens % BLOCK:
        return tokens.to_bytes(6, "little")
    return request.block_hashes[tokens // BLOCK - 1]


def layers_of(group):
    first = group * len(LAYERS)
    return [f"model.layers.{first + i}.attn" for i in range(len(LAYERS))]


def number(layer):
    return int(layer.split(".")[2])


def content(what, layer, cache):
    seed = int.from_bytes(what[:6], "little") + layer
    generator = torch.Generator().manual_seed(seed)
    if cache.dtype == torch.int8:  # states
        return torch.randint(-128, 127, cache.shape[1:], generator=generator, dtype=torch.int8)
    return torch.rand(cache.shape[1:], generator=generator)


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
    """Run a prompt and compare every whole block of it in the cache with what it should hold, but
    those of windows and states that it does not have any more.
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
            engine.worker.check(group, blocks[index], block_hash)
        compared = any(blocks[: len(request.block_hashes)])
        assert compared or engine.worker.specs[group] == STATE, "nothing was compared"
    return request
