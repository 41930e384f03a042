"""Engines of one node that share host memory: what one has, others load without a disk."""

import shutil
import tempfile
import time

import pytest
from scheduler_harness import BLOCK, CHUNK
from worker_harness import checked_prompt, files

from lmkv import _C

PROMPT = 3 * CHUNK + 2 * BLOCK + 9


@pytest.fixture
def arena():
    """A directory in memory, which goes with all that is in it."""
    folder = tempfile.mkdtemp(prefix="lmkv-test-", dir="/dev/shm")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make(engines_with_workers, tiny_model, root, arena):
    def make(**extra):
        shared = {"host_memory": "shared:64MiB", "arena_directory": arena}
        engine = engines_with_workers(tiny_model, root, **{**shared, **extra})
        # Memory for slabs is made while nothing else runs: what comes before it is not stored.
        core = engine.worker.connector._worker._engine
        deadline = time.monotonic() + 60
        while (stats := core.stats())["slabs_free"] + stats["slabs_cached"] < 16:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return engine

    return make


def remove_files(root):
    for file in files(root):
        file.unlink()


def test_what_one_engine_stored_another_loads_from_memory(make):
    checked_prompt(make(), "a", PROMPT)
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_loaded"] == 4
    assert second.worker.totals["memory_hits"] == 4
    assert "bytes_loaded" not in second.worker.totals


def test_it_is_found_without_its_files(make, root):
    """Nothing is asked of the directory: it may be slow, or the files not there yet."""
    checked_prompt(make(), "a", PROMPT)
    remove_files(root)
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["memory_hits"] == 4
    assert "loads_failed" not in second.worker.totals


def test_what_one_engine_loaded_another_has(make):
    checked_prompt(make(host_memory="64MiB"), "a", PROMPT)  # for itself
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert "memory_hits" not in second.worker.totals
    third = make()
    checked_prompt(third, "c", PROMPT)
    assert third.worker.totals["memory_hits"] == 4


def test_the_rest_of_a_prompt_comes_from_the_directory(make):
    checked_prompt(make(), "a", PROMPT)
    other = make(host_memory="64MiB")
    checked_prompt(other, "long", 6 * CHUNK)  # three chunks more, in its own memory
    third = make()
    checked_prompt(third, "b", 6 * CHUNK + 5)
    assert third.worker.totals["chunks_loaded"] == 6
    assert third.worker.totals["memory_hits"] == 3


def test_a_chunk_that_went_in_between_is_computed(make, root, monkeypatch):
    checked_prompt(make(), "a", PROMPT)
    remove_files(root)
    second = make()
    # As if they were evicted after the lookup.
    monkeypatch.setattr("lmkv.vllm.memory.Memory.leading", lambda self, keys: len(keys))
    checked_prompt(second, "other", PROMPT + CHUNK)
    assert second.worker.totals["chunks_missing"] > 0


def test_without_an_arena_an_engine_has_memory_of_its_own_and_says_so(make, tmp_path, lines):
    first = make(arena_directory=str(tmp_path / "no such directory"))
    checked_prompt(first, "a", PROMPT)
    assert any("host memory is not shared" in line for line in lines())
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert "memory_hits" not in second.worker.totals


def test_an_engine_that_ends_leaves_nothing_held(make, arena):
    engine = make()
    checked_prompt(engine, "a", PROMPT)
    info = engine.worker.connector._worker._engine.info()
    slab_bytes = int(info["arena_slab_bytes"])
    engine.worker.connector.shutdown()
    report = _C.arena_report(arena, slab_bytes)
    assert report.members == []
    assert (report.slots.ready, report.slots.held, report.slots.filling) == (4, 0, 0)
    assert _C.remove_arena(arena, slab_bytes) == report.bytes_taken
    assert _C.arena_report(arena, slab_bytes) is None
