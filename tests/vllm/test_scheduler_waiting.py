"""What requests wait for, and how often the directory is asked for them."""

import time

import pytest
from scheduler_harness import BLOCK, CHUNK, PER_CHUNK, Engine, key_of, put
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import RequestStatus


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root)


@pytest.fixture
def lookups(engine, monkeypatch):
    """The calls of the directory that waiting requests led to."""
    calls = []
    find = engine.side._lookup.find
    monkeypatch.setattr(
        engine.side._lookup, "find", lambda *args: calls.append(args) or find(*args)
    )
    return calls


def test_the_second_request_waits_for_the_first_ones_load_and_hits_locally(engine, root):
    first = engine.request("first", 2 * CHUNK + 5)
    second = engine.request("second", 2 * CHUNK + 9)
    put(root, *(key_of(first, (i + 1) * PER_CHUNK) for i in range(2)))
    engine.worker.hold_loads = True
    for _ in range(3):
        engine.step()
    assert first.status == RequestStatus.WAITING_FOR_REMOTE_KVS
    assert second.status == RequestStatus.WAITING
    engine.worker.hold_loads = False
    steps = [engine.step() for _ in range(3)]
    assert sum(len(metadata.loads) for _, metadata in steps) == 0
    assert [o.num_scheduled_tokens["second"] for o, _ in steps if o.num_scheduled_tokens] == [9]
    engine.run()
    assert engine.counted == {"tokens_loaded": 2 * CHUNK}
    engine.assert_at_rest()


def test_requests_that_share_a_prefix_load_each_chunk_once(engine, root):
    first = engine.request("first", 2 * CHUNK + 5)
    other = engine.request("other", [*range(CHUNK), *range(900, 900 + CHUNK + 5)])
    put(root, *(key_of(request, (i + 1) * PER_CHUNK) for request in (first, other) for i in (0, 1)))
    steps = engine.run()
    keys = [chunk.key for metadata in steps for load in metadata.loads for chunk in load.chunks]
    assert len(keys) == len(set(keys)) == 3
    engine.assert_at_rest()


def test_a_waiting_request_is_looked_up_once_not_every_step(engine, root, lookups):
    blocker = engine.request("blocker", 197 * BLOCK, max_tokens=4)
    engine.step()
    request = engine.request("a", [9] * (20 * BLOCK))
    put(root, key_of(request, PER_CHUNK))
    lookups.clear()
    engine.step()
    engine.step()
    assert request.status == RequestStatus.WAITING
    assert len(lookups) == 1
    assert not blocker.is_finished()
    engine.run()
    assert request.is_finished()
    engine.assert_at_rest()


def test_a_lookup_is_not_believed_for_ever(engine, root, monkeypatch):
    request = engine.request("a", 2 * CHUNK)
    assert engine.side.matched_tokens(request, 0) == 0
    put(root, key_of(request, PER_CHUNK))
    assert engine.side.matched_tokens(request, 0) == 0
    monkeypatch.setattr("lmkv.vllm.waiting.LOOKUP_SECONDS", -1.0)
    assert engine.side.matched_tokens(request, 0) == CHUNK


def test_a_request_that_waited_for_a_load_that_failed_does_not_try_it_again(engine, root):
    first = engine.request("first", 2 * CHUNK + 5)
    engine.request("second", 2 * CHUNK + 9)
    put(root, *(key_of(first, (i + 1) * PER_CHUNK) for i in range(2)))
    engine.worker.fail_chunks = {0}
    engine.worker.hold_loads = True
    engine.step()
    engine.worker.hold_loads = False
    loads = [load.request_id for metadata in engine.run() for load in metadata.loads]
    assert loads == []
    engine.assert_at_rest()


def test_a_request_that_waits_for_anothers_load_is_not_looked_up_again(
    engine, root, lookups, monkeypatch
):
    monkeypatch.setattr("lmkv.vllm.waiting.LOOKUP_SECONDS", -1.0)
    first = engine.request("first", 2 * CHUNK + 5)
    second = engine.request("second", 2 * CHUNK + 9)
    put(root, *(key_of(first, (i + 1) * PER_CHUNK) for i in range(2)))
    engine.worker.hold_loads = True
    for _ in range(4):
        engine.step()
    assert second.status == RequestStatus.WAITING
    assert len(lookups) == 2
    engine.worker.hold_loads = False
    engine.run()
    assert second.is_finished()
    assert len(lookups) == 3
    engine.assert_at_rest()


def test_a_burst_of_requests_is_looked_up_over_several_steps(engine, root, lookups):
    requests = [engine.request(f"r{index}", [index] * (CHUNK + 1)) for index in range(70)]
    ask = engine.side.matched_tokens
    for already in (0, 32, 64):
        answers = [ask(request, 0) for request in requests]
        assert answers.count(None) == max(70 - already - 32, 0)
        engine.side.step(SchedulerOutput.make_empty())
    assert len(lookups) == 70


def test_a_step_does_not_wait_for_the_filesystem(engine, root, monkeypatch):
    monkeypatch.setattr("lmkv.vllm.lookup.WAIT_SECONDS", 0.0)
    running = engine.request("running", 5, max_tokens=400)
    while running.status == RequestStatus.WAITING:
        engine.step()
    request = engine.request("a", 2 * CHUNK + BLOCK + 5)
    put(root, *(key_of(request, blocks) for blocks in (PER_CHUNK, 2 * PER_CHUNK)))
    output, metadata = engine.step()
    assert list(output.num_scheduled_tokens) == ["running"]
    assert metadata.loads == []
    for _ in range(300):
        output, metadata = engine.step()
        assert "running" in output.num_scheduled_tokens
        if metadata.loads:
            break
        time.sleep(0.01)  # a step of a real engine
    assert request.num_computed_tokens == 2 * CHUNK
    engine.abort(running)
    engine.run()
    engine.assert_at_rest()


def test_all_lookups_of_a_step_share_its_patience(engine, monkeypatch):
    monkeypatch.setattr("lmkv.vllm.lookup.WAIT_SECONDS", 0.05)
    lookup = engine.side._lookup
    lookup.begin_step()
    waits = []

    def never_answers(keys, patience):
        waits.append(patience)
        time.sleep(min(patience, 0.02))

    for _ in range(5):
        assert lookup._ask(never_answers, []) is None
    assert waits[0] == 0.05
    assert sum(min(wait, 0.02) for wait in waits) < 0.08
    assert waits[-1] == 0.0
    engine.side.step(SchedulerOutput.make_empty())
    lookup._ask(never_answers, [])
    assert waits[-1] == 0.05
