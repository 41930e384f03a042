"""Engines with a directory each and a remote tier behind them: what they look up, load, keep."""

import shutil
import time

import pytest
from scheduler_harness import BLOCK, CHUNK
from worker_harness import checked_prompt, files

from lmkv.vllm.metadata import RootsOut

PROMPT = 3 * CHUNK + 2 * BLOCK + 9


@pytest.fixture(autouse=True)
def answers_come_in_time(monkeypatch):
    """On a busy machine a request would not wait long enough for an answer."""
    monkeypatch.setattr("lmkv.remote.lookup.SHORTEST_WAIT_SECONDS", 30.0)
    monkeypatch.setattr("lmkv.remote.lookup.LONGEST_WAIT_SECONDS", 30.0)


@pytest.fixture
def shared(tmp_path):
    return tmp_path / "shared"


@pytest.fixture
def make(engines_with_workers, tiny_model, tmp_path, shared):
    def make(name, **extra):
        extra = {"remote": f"file://{shared}", "remote_writes": "write_through", **extra}
        engine = engines_with_workers(tiny_model, tmp_path / name, **extra)
        if extra["remote"]:
            wait_until_it_asks(engine)
        return engine

    return make


def stats(engine):
    """The core's counters, when all is done: what is kept is copied while nobody waits."""
    core = engine.worker.connector._worker._engine
    assert core.drain(20)
    return core.stats()


def wait_until_it_asks(engine):
    deadline = time.monotonic() + 20
    while engine.side._remote.is_out:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_one_engine_stored_another_finds_loads_and_keeps(make, tmp_path):
    checked_prompt(make("a"), "a", PROMPT)
    second = make("b")
    checked_prompt(second, "b", PROMPT)
    totals = stats(second)
    assert totals["remote_hits"] == totals["chunks_loaded"] == totals["chunks_promoted"] == 4
    assert len(files(tmp_path / "b")) == 4
    third = make("b", remote="")
    checked_prompt(third, "c", PROMPT)
    assert third.worker.totals["chunks_loaded"] == 4


def test_what_a_directory_has_is_not_asked_for(make, tmp_path, shared):
    checked_prompt(make("a"), "a", PROMPT)
    shutil.rmtree(shared)
    shared.mkdir()
    again = make("a")
    checked_prompt(again, "b", PROMPT)
    assert again.worker.totals["chunks_loaded"] == 4
    assert "remote_hits" not in again.worker.totals


def test_a_prompt_may_be_in_both(make, tmp_path):
    """The beginning and the end in the directory, the middle behind it."""
    checked_prompt(make("a"), "a", PROMPT)
    second = make("a", host_memory="64MiB")
    for file in files(tmp_path / "a")[1:3]:
        file.unlink()
    checked_prompt(second, "b", PROMPT)
    totals = stats(second)
    assert totals["chunks_loaded"] == 4
    assert totals["remote_hits"] == 2
    assert len(files(tmp_path / "a")) == 4


def test_what_vanished_there_is_computed(make, shared):
    checked_prompt(make("a"), "a", PROMPT)
    second = make("b")
    find = second.side._lookup.find

    def find_then_lose(*arguments):
        found = find(*arguments)
        if found:
            for file in files(shared):
                file.unlink()
        return found

    second.side._lookup.find = find_then_lose
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_missing"] > 0


def test_what_is_damaged_there_is_computed_and_stored_anew(make, shared):
    checked_prompt(make("a"), "a", PROMPT)
    for file in files(shared):
        data = bytearray(file.read_bytes())
        data[5000] ^= 1
        file.write_bytes(data)
    second = make("b")
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_bad"] > 0
    third = make("c")
    checked_prompt(third, "c", PROMPT)
    assert third.worker.totals["remote_hits"] == 4


def test_one_that_cannot_be_used_is_said_and_left_out(
    engines_with_workers, tiny_model, tmp_path, lines
):
    (tmp_path / "file").write_text("no directory")
    engine = engines_with_workers(
        tiny_model, tmp_path / "a", remote=f"file://{tmp_path}/file/below"
    )
    checked_prompt(engine, "a", PROMPT)
    assert engine.worker.totals["chunks_stored"] == 4
    assert any("file/below cannot be used and is left out" in line for line in lines())


def test_one_that_goes_out_of_service_is_not_asked(make, shared):
    checked_prompt(make("a"), "a", PROMPT)
    second = make("b")
    engine = second.worker.connector._worker._engine
    second.side._handshake.note_roots({0: RootsOut(loads=frozenset({1}))})
    second.side._note_roots()
    assert second.side._remote.is_out
    checked_prompt(second, "b", PROMPT)
    assert "chunks_loaded" not in second.worker.totals
    assert engine.roots_out_of_service() == []
    second.side._handshake.note_roots({0: RootsOut()})
    second.side._note_roots()
    assert not second.side._remote.is_out
