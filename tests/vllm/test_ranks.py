"""Two ranks, real but for the model, whose outputs vLLM's own aggregator makes one of."""

import time

import pytest
from scheduler_harness import CHUNK, PER_CHUNK, Engine, key_of
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from worker_harness import RealWorker

PROMPT = 3 * CHUNK + 9


class Ranks:
    """Both workers as the scheduler sees them. ``silent`` ranks do not look at their engines."""

    def __init__(self, engine):
        self.workers = [RealWorker(engine, rank=rank) for rank in range(2)]
        self.aggregator = KVOutputAggregator.from_connector(engine.connector, 2)
        self.silent = set()
        engine.worker = self
        engine.greet(*(worker.connector.get_handshake_metadata() for worker in self.workers))

    def output(self, metadata, scheduled):
        outputs = []
        for rank, worker in enumerate(self.workers):
            poll = worker.connector.worker_side.poll
            if rank in self.silent:
                worker.connector.worker_side.poll = set
            outputs.append(_runner_output(worker.output(metadata, scheduled)))
            worker.connector.worker_side.poll = poll
        return self.aggregator.aggregate(outputs).kv_connector_output

    def drain(self):
        """Wait until the engines have done all that they were given."""
        for worker in self.workers:
            assert worker.connector.worker_side._engine.drain(20)


def _runner_output(output: KVConnectorOutput):
    return ModelRunnerOutput(req_ids=[], req_id_to_index={}, kv_connector_output=output)


@pytest.fixture
def make(tiny_model, root):
    made = []

    def make():
        engine = Engine(tiny_model, root, ranks=2, hello=False, extra={"host_memory": "64MiB"})
        made.append(Ranks(engine))
        return engine

    yield make
    for ranks in made:
        for worker in ranks.workers:
            worker.connector.shutdown()


def run(engine):
    deadline = time.monotonic() + 20
    while engine.scheduler.has_requests():
        engine.step()
        assert time.monotonic() < deadline
    engine.assert_at_rest()


def test_blocks_are_held_until_both_ranks_have_reported(make, root):
    engine = make()
    engine.worker.silent = {1}
    engine.request("a", PROMPT)
    engine.step()
    engine.worker.drain()
    for _ in range(3):
        engine.step()
    assert engine.side._stores.pinned_jobs == 3
    engine.worker.silent = {0}
    engine.step()
    assert engine.side._stores.pinned_jobs == 0
    run(engine)
    assert len(list(root.glob("v1/*/r[01]/*/*.kv"))) == 2 * 3


def test_a_chunk_that_one_rank_cannot_load_fails_for_both(make, root):
    first = make()
    request = first.request("a", PROMPT)
    run(first)
    (file,) = root.glob(f"v1/*/r1/*/{key_of(request, 2 * PER_CHUNK).hex()}.kv")
    file.write_bytes(b"")
    second = make()
    # Rank 1 fails its chunk in one step; rank 0, which has all of them, reports later.
    second.worker.silent = {0}
    request = second.request("b", PROMPT)
    second.step()
    second.worker.drain()
    for _ in range(3):
        second.step()
    assert second.counted == {}, "one rank is not done"
    second.worker.silent = set()
    run(second)
    assert request.is_finished()
    assert second.counted == {"tokens_loaded": CHUNK, "tokens_failed": 2 * CHUNK}
    # It was computed, and stored again by both.
    assert file.stat().st_size > 0
    third = make()
    third.request("c", PROMPT)
    run(third)
    assert third.counted == {"tokens_loaded": 3 * CHUNK}
