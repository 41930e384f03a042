"""Compute or load, end to end: the played model takes its time, the directory is fast or slow."""

import itertools
import statistics
import time

import pytest
from scheduler_harness import CHUNK, PER_CHUNK, Engine, key_of
from vllm.v1.request import RequestStatus
from worker_harness import RealWorker, checked_prompt, files, run

from lmkv._C import Faults, fault_engine
from lmkv.vllm.reads import FIRST_PAUSE_SECONDS

PROMPT = 3 * CHUNK + 9
SECONDS_PER_TOKEN = 0.0015
SLOW = "read.delay:3s"  # computing a prompt takes a fifth of it


class Timed(RealWorker):
    """Takes the time to compute that a model would."""

    seconds_per_token = SECONDS_PER_TOKEN

    def compute(self, scheduled):
        super().compute(scheduled)
        time.sleep(sum(scheduled.num_scheduled_tokens.values()) * self.seconds_per_token)


@pytest.fixture
def make(tiny_model, root, monkeypatch):
    made = []

    def make(faults="", seconds_per_token=SECONDS_PER_TOKEN, **extra):
        injected = Faults(faults)
        with monkeypatch.context() as patch:
            patch.setattr(
                "lmkv.vllm.worker.Engine", lambda options: fault_engine(options, injected)
            )
            engine = Engine(
                tiny_model,
                root,
                hello=False,
                extra={"host_memory": "64MiB", "load_policy": "auto", **extra},
            )
            made.append(Timed(engine))
            made[-1].seconds_per_token = seconds_per_token
        engine.greet(made[-1].connector.get_handshake_metadata())
        engine.faults = injected
        return engine

    yield make
    for worker in made:
        worker.engine.faults.change("")
        worker.connector.shutdown()


def prompt(number):
    return [7 * number + 1, *range(PROMPT - 1)]


def stored_prompts(make, count):
    """Prompts that another engine has stored."""
    first = make(seconds_per_token=0)
    for number in range(count):
        first.request(f"stored-{number}", prompt(number))
        run(first)


_colds = itertools.count(1000)


def compute_something(engine):
    """So that the engine knows what computing takes."""
    checked_prompt(engine, "cold", [next(_colds), *range(PROMPT - 1)])


def seconds_to_first_token(engine, number):
    begin = time.monotonic()
    engine.request(f"timed-{number}", prompt(number))
    while engine.scheduler.has_requests():
        engine.step()
    return time.monotonic() - begin


def test_a_fast_directory_loads_everything(make):
    stored_prompts(make, 4)
    engine = make()
    compute_something(engine)
    for number in range(4):
        checked_prompt(engine, f"a{number}", prompt(number))
    assert engine.counted["tokens_loaded"] == 4 * 3 * CHUNK
    assert engine.counted["load_decisions_load"] == 4
    assert engine.counted["load_decisions_trial"] == 1
    assert "loads_late" not in engine.counted
    assert engine.observed["load_tokens_per_second"] > engine.observed["compute_tokens_per_second"]
    assert engine.observed["compute_tokens_per_second"] < 1 / SECONDS_PER_TOKEN


def test_a_slow_directory_costs_next_to_nothing(make):
    count = 6
    stored_prompts(make, count)
    plain, slow = make(load_policy="never"), make(SLOW)
    for engine in (plain, slow):
        compute_something(engine)
    ratios = []
    for number in range(count):
        without = seconds_to_first_token(plain, number)
        ratios.append(seconds_to_first_token(slow, number) / without)
    print(ratios)
    # The first is the trial. A busy machine may hold up any of them.
    assert statistics.median(ratios) < 1.05, ratios
    assert sum(ratios) / count < 1.25, ratios
    assert slow.counted["loads_late"] == 1, "the trial"
    assert slow.counted["load_decisions_compute"] == count - 1
    assert plain.counted.get("tokens_loaded", 0) == 0
    slow.faults.change("")
    run(slow)


def test_what_came_before_a_load_was_given_up_is_kept_and_the_answer_is_right(make):
    stored_prompts(make, 2)
    engine = make()
    compute_something(engine)
    checked_prompt(engine, "fast", prompt(0))
    # The first chunk of the other prompt comes into host memory, and no further.
    checked_prompt(engine, "head", prompt(1)[: CHUNK + 1])
    engine.scheduler.reset_prefix_cache()
    engine.faults.change(SLOW)
    loaded = engine.counted["tokens_loaded"]
    checked_prompt(engine, "slow", prompt(1))
    assert engine.counted["loads_late"] == 1
    assert engine.counted["tokens_loaded"] - loaded == CHUNK
    assert engine.counted["tokens_failed"] == 2 * CHUNK
    # The chunks are thought neither bad nor gone.
    assert not engine.side._lookup._absent
    assert not any(step.stores for step in engine.run())


def test_many_at_once_on_a_fast_directory_are_all_loaded(make):
    count = 12
    stored_prompts(make, count)
    engine = make()
    compute_something(engine)
    checked_prompt(engine, "first", prompt(0))
    engine.faults.change("read.delay:30ms")
    for number in range(1, count):
        engine.request(f"a{number}", prompt(number))
    run(engine)
    assert engine.counted["tokens_loaded"] == count * 3 * CHUNK
    assert "loads_late" not in engine.counted


def test_those_that_come_with_the_first_wait_for_it_and_are_loaded(make):
    count = 6
    stored_prompts(make, count)
    engine = make()
    compute_something(engine)
    for number in range(count):
        engine.request(f"a{number}", prompt(number))
    run(engine)
    assert engine.counted["tokens_loaded"] == count * 3 * CHUNK
    assert engine.counted["load_decisions_load"] == count
    assert engine.counted["load_decisions_trial"] == 1


def test_a_trial_that_failed_does_not_hold_up_the_next(make, root):
    stored_prompts(make, 2)
    engine = make()
    compute_something(engine)
    key = key_of(engine.request("a", prompt(0)), PER_CHUNK)
    (head,) = (file for file in files(root) if file.stem == key.hex())
    with head.open("r+b") as damaged:
        damaged.seek(5000)
        damaged.write(b"not what was stored")
    run(engine)
    assert engine.counted["tokens_failed"] == 3 * CHUNK
    checked_prompt(engine, "b", prompt(1))
    assert engine.counted["tokens_loaded"] == 3 * CHUNK
    assert engine.counted["load_decisions_trial"] == 2


def test_a_trial_whose_request_is_gone_does_not_hold_up_the_next(make):
    stored_prompts(make, 2)
    engine = make(SLOW)
    compute_something(engine)
    request = engine.request("a", prompt(0))
    while request.status is not RequestStatus.WAITING_FOR_REMOTE_KVS:
        engine.step()
    engine.scheduler.finish_requests([request.request_id], RequestStatus.FINISHED_ABORTED)
    engine.faults.change("")
    run(engine)
    checked_prompt(engine, "b", prompt(1))
    assert engine.counted["tokens_loaded"] == 3 * CHUNK


def test_a_directory_that_becomes_fast_is_used_again(make):
    stored_prompts(make, 3)
    engine = make(SLOW)
    compute_something(engine)
    checked_prompt(engine, "a", prompt(0))
    engine.faults.change("")
    checked_prompt(engine, "b", prompt(1))
    assert engine.counted.get("tokens_loaded", 0) == 0
    engine.side._pace._local.tried_at -= 2 * FIRST_PAUSE_SECONDS
    checked_prompt(engine, "c", [*prompt(1), 5])
    checked_prompt(engine, "d", prompt(2))
    assert engine.counted["tokens_loaded"] >= 3 * CHUNK
    assert engine.counted["load_decisions_trial"] == 2


def test_a_trial_that_host_memory_answered_does_not_hold_up_the_next(make):
    engine = make()
    for number in range(3):
        checked_prompt(engine, f"cold-{number}", prompt(number))
        run(engine)
    engine.side._pace._recent.clear()  # more is in host memory than is counted on
    engine.scheduler.reset_prefix_cache()
    for number in range(3):
        checked_prompt(engine, f"again-{number}", prompt(number))
    assert engine.counted["tokens_loaded"] == 3 * 3 * CHUNK
    assert engine.counted["tokens_loaded_memory"] == 3 * 3 * CHUNK
    assert engine.counted["load_decisions_trial"] == 3


def test_what_is_in_host_memory_is_loaded_from_a_slow_directory(make):
    engine = make()
    checked_prompt(engine, "cold", prompt(0))
    run(engine)
    engine.faults.change(SLOW)
    engine.scheduler.reset_prefix_cache()
    checked_prompt(engine, "again", prompt(0))
    assert engine.counted["tokens_loaded"] == 3 * CHUNK
    assert "loads_late" not in engine.counted


def test_always_waits_and_never_does_not_ask(make):
    stored_prompts(make, 1)
    always = make("read.delay:300ms", load_policy="always")
    compute_something(always)
    checked_prompt(always, "a", prompt(0))
    assert always.counted["tokens_loaded"] == 3 * CHUNK
    never = make(load_policy="never")
    checked_prompt(never, "a", prompt(0))
    assert "tokens_loaded" not in never.counted
