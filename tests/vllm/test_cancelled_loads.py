"""A load that nobody waits for any more is given up, and nothing is thought of it."""

import time

import pytest
from scheduler_harness import CHUNK, PER_CHUNK, Engine, key_of, put
from vllm.v1.outputs import KVConnectorOutput
from worker_harness import checked_prompt, run

from lmkv.vllm.metadata import StepReport


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root)


@pytest.fixture
def request_a(engine, root):
    """A request of three chunks whose load is under way."""
    request = engine.request("a", 3 * CHUNK + 5)
    put(root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(3)))
    engine.worker.hold_loads = True
    assert engine.step()[1].loads
    return request


def test_an_abort_cancels_the_load_once_and_frees_the_blocks(engine, request_a):
    engine.abort(request_a)
    assert [engine.step()[1].cancelled for _ in range(2)] == [["a"], []]
    assert not engine.scheduler.requests
    engine.assert_at_rest()
    assert engine.counted == {}


def test_what_was_cancelled_is_there_for_the_next_request(engine, request_a):
    engine.abort(request_a)
    # The workers may say what did not come: that says nothing of the chunks.
    output = KVConnectorOutput(kv_connector_worker_meta=StepReport(failed_chunks={"a": {0, 1, 2}}))
    engine.side.settle(output)
    engine.step()
    engine.worker.hold_loads = False
    second = engine.request("b", 3 * CHUNK + 5)
    (load,) = engine.step()[1].loads
    assert len(load.chunks) == 3
    engine.run()
    assert second.is_finished()
    assert engine.counted == {"tokens_loaded": 3 * CHUNK}
    engine.assert_at_rest()


def test_what_was_given_up_for_its_time_is_there_and_what_failed_before_is_not(engine, request_a):
    engine.worker.fail_chunks, engine.worker.late_chunks = {1}, {2}
    engine.worker.hold_loads = False
    engine.step()
    assert set(engine.side._lookup._absent) == {key_of(request_a, 2 * PER_CHUNK)}
    assert engine.side._waiting._late == {"a"}
    steps = engine.run()
    stored = {store.key for step in steps for store in step.stores}
    assert stored == {key_of(request_a, 2 * PER_CHUNK)}, "the others are in the directory"
    assert engine.counted["loads_late"] == 1
    assert engine.counted["tokens_loaded"] == CHUNK
    assert engine.counted["tokens_failed"] == 2 * CHUNK
    engine.assert_at_rest()
    assert not engine.side._waiting._late


def test_what_failed_before_it_was_cancelled_stays_absent(engine, request_a):
    output = KVConnectorOutput(kv_connector_worker_meta=StepReport(failed_chunks={"a": {1}}))
    engine.side.settle(output)
    engine.abort(request_a)
    engine.step()
    engine.request("b", 3 * CHUNK + 5)
    (load,) = engine.step()[1].loads
    assert len(load.chunks) == 1
    assert engine.counted == {}


def test_who_waits_for_a_load_that_is_cancelled_loads_itself(engine, request_a):
    waiting = engine.request("b", 3 * CHUNK + 5)
    assert engine.step()[1].loads == []
    engine.abort(request_a)
    assert engine.step()[1].cancelled == ["a"]
    (load,) = engine.step()[1].loads
    assert load.request_id == "b"
    engine.worker.hold_loads = False
    engine.run()
    assert waiting.is_finished()
    engine.assert_at_rest()


def test_a_request_that_ends_without_a_load_cancels_nothing(engine):
    engine.abort(engine.request("a", CHUNK))
    engine.request("b", CHUNK)
    assert not any(metadata.cancelled for metadata in engine.run())


# -- with the real core -----------------------------------------------------------------------


@pytest.fixture
def make(tiny_model, root, engines_with_workers):
    return lambda **extra: engines_with_workers(tiny_model, root, **extra)


LONG = 40 * CHUNK + 5


def test_the_core_stops_loading_and_the_next_request_gets_every_byte(make, lines):
    checked_prompt(make(), "a", LONG)
    second = make(host_memory="1MiB")  # not all at once
    totals, cancelled = second.worker.totals, 0
    deadline = time.monotonic() + 60
    while not cancelled:  # a load may be faster than the abort
        assert time.monotonic() < deadline
        second.abort_during = second.request("b", LONG)
        side = second.worker.connector.worker_side
        poll, side.poll = side.poll, set  # not looked at, so that it has not ended
        second.step()
        side.poll = poll
        second.abort(second.abort_during)
        run(second)
        cancelled = totals.get("loads_cancelled", 0)
    assert cancelled + totals.get("chunks_loaded", 0) >= 40
    assert "loads_failed" not in totals
    assert second.counted == {}
    assert side._cancelled == set()
    assert not [line for line in lines() if "was not loaded" in line]
    checked_prompt(second, "c", LONG)
    second.counted.pop("tokens_loaded_memory", 0)  # what came before the abort
    assert second.counted == {"tokens_loaded": 40 * CHUNK}


def test_a_load_that_ended_meanwhile_ends_as_any_other(make):
    checked_prompt(make(), "a", LONG)
    second = make()
    side = second.worker.connector.worker_side
    request = second.request("b", LONG)
    poll, side.poll = side.poll, set
    second.step()
    assert side._engine.drain(20)
    side.poll = poll
    second.abort(request)
    run(second)
    assert second.worker.totals["chunks_loaded"] == 40
    assert "loads_cancelled" not in second.worker.totals
    assert second.counted == {}
    checked_prompt(second, "c", LONG)
