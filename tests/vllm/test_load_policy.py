"""Compute or load, end to end: the played model takes its time, the directory is fast or slow."""

import itertools
import statistics
import time

import pytest
from scheduler_harness import CHUNK, Engine
from worker_harness import RealWorker, checked_prompt, run

from lmkv._C import Faults, fault_engine
from lmkv.vllm.pace import FIRST_PAUSE_SECONDS

PROMPT = 3 * CHUNK + 9
SECONDS_PER_TOKEN = 0.0005
SLOW = "read.delay:1s"  # computing a prompt takes a fifth of it


class Timed(RealWorker):
    """Takes the time to compute that a model would."""

    def compute(self, scheduled):
        super().compute(scheduled)
        time.sleep(sum(scheduled.num_scheduled_tokens.values()) * SECONDS_PER_TOKEN)


@pytest.fixture
def make(tiny_model, root, monkeypatch):
    made = []

    def make(faults="", **extra):
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
    first = make()
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
    engine.faults.change(SLOW)
    checked_prompt(engine, "slow", prompt(1))
    assert engine.counted["loads_late"] == 1
    assert engine.counted["tokens_failed"] == 3 * CHUNK
    # The chunks are thought neither bad nor gone.
    assert not engine.side._lookup._absent
    assert not any(step.stores for step in engine.run())


def test_a_load_that_makes_progress_is_not_given_up(make):
    stored_prompts(make, 1)
    engine = make()
    compute_something(engine)
    core = engine.worker.connector.worker_side._engine

    class Slow:
        """As if chunks arrived one by one, the last after half of what computing takes."""

        def __getattr__(self, name):
            return getattr(core, name)

        def poll(self):
            return [] if self.arrived() < 3 else core.poll()

        def load(self, *arguments):
            self.begun = time.monotonic()
            return core.load(*arguments)

        def arrived(self):
            if not hasattr(self, "begun"):
                return 3
            taken = time.monotonic() - self.begun
            return 1 + int(taken / (PROMPT * SECONDS_PER_TOKEN / 4))

        def chunks_loaded(self, _job):
            return self.arrived()

    engine.worker.connector.worker_side._engine = Slow()
    checked_prompt(engine, "a", prompt(0))
    engine.worker.connector.worker_side._engine = core
    assert engine.counted["tokens_loaded"] == 3 * CHUNK
    assert engine.counted.get("loads_late", 0) == 0


def test_a_directory_that_becomes_fast_is_used_again(make):
    stored_prompts(make, 3)
    engine = make(SLOW)
    compute_something(engine)
    checked_prompt(engine, "a", prompt(0))
    engine.faults.change("")
    checked_prompt(engine, "b", prompt(1))
    assert engine.counted.get("tokens_loaded", 0) == 0
    engine.side._pace._seen_at -= FIRST_PAUSE_SECONDS
    checked_prompt(engine, "c", [*prompt(1), 5])
    checked_prompt(engine, "d", prompt(2))
    assert engine.counted["tokens_loaded"] >= 3 * CHUNK
    assert engine.counted["load_decisions_trial"] == 2


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
