"""Several directories: chunks in all of them, and one that fails takes nothing else with it."""

import itertools
import time

import pytest
from scheduler_harness import CHUNK, PER_CHUNK, Engine, chunk_file, key_of, put
from vllm.v1.outputs import KVConnectorOutput
from worker_harness import checked_prompt, files

from lmkv import ConfigError
from lmkv._C import Directory
from lmkv.vllm.activity import Throttle
from lmkv.vllm.metadata import RootsOut, StepReport
from lmkv.vllm.metrics import GAUGES
from lmkv.vllm.roots import RootWatch
from lmkv.vllm.worker import CLOSE_SECONDS

CHUNKS = 32  # of one prompt: some are in each of two directories, whatever their paths
PROMPT = CHUNKS * CHUNK + 9


@pytest.fixture
def roots(tmp_path):
    return [tmp_path / "a", tmp_path / "b"]


@pytest.fixture
def make(tiny_model, roots, engines_with_workers):
    paths = {"path": [str(root) for root in roots]}
    return lambda **extra: engines_with_workers(tiny_model, roots[0], **(paths | extra))


def step_until(engine, condition):
    deadline = time.monotonic() + 20
    while not condition():
        engine.step()
        assert time.monotonic() < deadline


def test_chunks_and_facts_are_in_both_and_another_engine_loads_them(make, roots):
    checked_prompt(make(), "a", PROMPT)
    in_each = [len(files(root)) for root in roots]
    assert sum(in_each) == CHUNKS
    assert min(in_each) > 3
    assert [len(list(root.glob("v1/*/meta.json"))) for root in roots] == [1, 1]
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_loaded"] == CHUNKS
    # The order in which they are named says nothing.
    third = make(path=[str(root) for root in reversed(roots)])
    checked_prompt(third, "c", PROMPT)
    assert third.worker.totals["chunks_loaded"] == CHUNKS


class Breakable:
    """A directory that can be made to fail, as if its filesystem did."""

    def __init__(self, path):
        self.path = path
        self._away = path.with_name("away")

    def break_(self):
        self.path.rename(self._away)
        self.path.symlink_to(self.path)  # ELOOP for whatever is below

    def mend(self):
        self.path.unlink()
        self._away.rename(self.path)


def test_one_that_fails_changes_no_answer_is_not_asked_any_more_and_comes_back(make, roots, lines):
    checked_prompt(make(), "a", PROMPT)
    engine = make()
    disk = Breakable(roots[1])
    admitted = engine.side.admitted

    def break_then_admit(*args):
        if not roots[1].is_symlink():
            disk.break_()
        admitted(*args)

    engine.side.admitted = break_then_admit
    checked_prompt(engine, "b", PROMPT)  # exact, though it was promised chunks that fail
    engine.side.admitted = admitted
    assert engine.worker.totals["loads_failed"] >= 3
    assert engine.side._roots_out.loads == {1}
    assert engine.counted["loads_out_of_service"] == 1
    (line,) = [line for line in lines() if "is out of service for loads" in line]
    assert f"{roots[1]} is out of service for loads: directory of {roots[1]}/v1/" in line
    assert "Too many levels of symbolic links" in line
    # What is computed is stored in the other one only.
    step_until(engine, lambda: engine.side._roots_out.stores == {1})
    checked_prompt(engine, "c", [3] * PROMPT)
    assert engine.worker.totals["stores_dropped_out_of_service"] > 0
    assert [line for line in lines() if "is out of service for stores" in line]

    engine.counted.clear()
    disk.mend()
    step_until(engine, lambda: engine.side._roots_out.loads == set())
    assert [line for line in lines() if line.endswith(f"{roots[1]} is back in service for loads")]
    # Stores come back with the first that succeeds.
    deadline = time.monotonic() + 20
    for number in itertools.count(1):
        checked_prompt(engine, f"new {number}", [number] * PROMPT)
        if not engine.side._roots_out.stores:
            break
        assert time.monotonic() < deadline
    assert engine.counted["loads_out_of_service"] == 0
    assert engine.counted["stores_out_of_service"] == 0
    third = make()
    checked_prompt(third, "e", PROMPT)
    assert third.worker.totals["chunks_loaded"] == CHUNKS


def test_one_that_cannot_be_used_at_start_is_left_out_and_not_looked_at(make, roots, lines):
    checked_prompt(make(), "a", PROMPT)
    disk = Breakable(roots[1])
    disk.break_()
    engine = make()
    (line,) = [line for line in lines() if "cannot be used and is left out" in line]
    assert f"lmkv: rank 0: {roots[1]} cannot be used" in line
    assert engine.side._roots_out == RootsOut(frozenset({1}), frozenset({1}))
    disk.mend()  # too late: it is left out until the next start
    checked_prompt(engine, "b", PROMPT)
    assert "loads_failed" not in engine.worker.totals
    assert engine.counted["loads_out_of_service"] == 1
    assert engine.counted["stores_out_of_service"] == 1
    assert not [line for line in lines() if "meta.json" in line]
    for root in roots:
        disk = Breakable(root)
        disk._away = root.with_name(f"away-{root.name}")
        disk.break_()
    with pytest.raises(ConfigError):
        make()


def test_chunks_of_a_directory_that_any_rank_has_out_are_not_looked_up(tiny_model, roots, lines):
    extra = {"path": [str(root) for root in roots]}
    engine = Engine(tiny_model, roots[0], ranks=2, extra=extra)
    request = engine.request("a", PROMPT)
    keys = [key_of(request, (i + 1) * PER_CHUNK) for i in range(CHUNKS)]
    engine.abort(request)
    for root in roots:
        put(root, *keys, ranks=2)
    first_of_b = next(i for i, key in enumerate(keys) if _belongs_to(roots, key) == 1)

    def promised():
        engine.side._waiting._found.clear()
        return engine.side.matched_tokens(request, 0)

    def report(**ranks):
        meta = StepReport(roots_out={int(rank[1:]): out for rank, out in ranks.items()})
        engine.side.settle(KVConnectorOutput(kv_connector_worker_meta=meta))

    def said():
        stats = engine.side.take_stats()
        return {name: stats.data[name] for name in stats.data if name in GAUGES} if stats else {}

    b_out = RootsOut(frozenset({1}))
    assert promised() == CHUNKS * CHUNK
    report(r1=b_out)
    assert promised() == first_of_b * CHUNK
    report(r0=RootsOut())
    assert promised() == first_of_b * CHUNK, "rank 1 has it out all the same"
    report(r0=b_out, r1=RootsOut(frozenset(), frozenset({0})))
    assert promised() == first_of_b * CHUNK
    assert said() == {"loads_out_of_service": 1, "stores_out_of_service": 1}
    report(r0=RootsOut())
    assert promised() == CHUNKS * CHUNK
    assert said() == {"loads_out_of_service": 0}, "the other has not changed"
    report(r0=RootsOut())
    assert said() == {}, "nothing has changed"


def _belongs_to(roots, key):
    """Index of the directory that has ``key``: the file is put into one only, and looked up."""
    for index, root in enumerate(roots):
        for other in roots:
            chunk_file(other, key).unlink(missing_ok=True)
        put(root, key)
        directory = Directory(
            root=[str(root) for root in roots], namespace=bytes(range(32)), ranks=1
        )
        there = directory.lookup([key])
        for other in roots:
            put(other, key)
        if there:
            return index
    raise AssertionError("it is in neither")


def test_a_promise_of_a_directory_that_went_out_is_not_kept(tiny_model, roots):
    engine = Engine(tiny_model, roots[0], extra={"path": [str(root) for root in roots]})
    request = engine.request("a", PROMPT)
    for root in roots:
        put(root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(CHUNKS)))
    assert engine.side.matched_tokens(request, 0) == CHUNKS * CHUNK
    meta = StepReport(roots_out={0: RootsOut(frozenset({0, 1}))})
    engine.side.settle(KVConnectorOutput(kv_connector_worker_meta=meta))
    assert engine.side.matched_tokens(request, 0) == 0


def test_what_goes_out_again_and_again_is_said_once_a_minute(lines):
    now = [0.0]
    watch = RootWatch(["/a", "/b"], 3, lambda: Throttle(lambda: now[0]))
    assert watch.update({"root1_loads_out": "slow"}) == RootsOut(frozenset({1}))
    assert watch.update({"root1_loads_out": "other words"}) == RootsOut(frozenset({1}))
    assert watch.update({}) == RootsOut()
    assert len(lines()) == 2
    assert lines()[0].startswith("lmkv: rank 3: /b is out of service for loads: slow; ")
    assert lines()[1] == "lmkv: rank 3: /b is back in service for loads"
    watch.update({"root1_loads_out": "slow"})
    watch.update({})
    assert len(lines()) == 2
    assert watch.update({"root1_stores_out": "full", "root0_loads_out": "slow"}) == RootsOut(
        frozenset({0}), frozenset({1})
    )
    assert len(lines()) == 4
    now[0] += 61
    watch.update({"root1_loads_out": "slow"})
    assert len([line for line in lines() if "/b is out of service for loads" in line]) == 2


def test_a_disk_that_does_not_answer_holds_up_no_shutdown(make, lines):
    side = make().worker.connector.worker_side
    real = side._engine

    class Hanging:
        def drain(self, timeout):
            return real.drain(timeout)

        def close(self, timeout):
            assert timeout == CLOSE_SECONDS
            return False

    side._engine = Hanging()
    side.shutdown()
    side.shutdown()
    assert len([line for line in lines() if "does not answer; the process ends" in line]) == 1
    assert real.close(20)


def test_a_load_that_takes_longer_than_its_time_is_computed(make):
    checked_prompt(make(), "a", PROMPT)
    engine = make(load_timeout=1e-6)  # over when it is first looked at
    checked_prompt(engine, "b", PROMPT)
    assert engine.worker.totals["loads_timed_out"] > 0
    assert engine.counted["tokens_failed"] > 0
