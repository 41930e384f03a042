"""LMKVTier over disks that fail, hang and answer again: the scheduler's thread waits for none."""

import sys
import time
from pathlib import Path

import pytest
from tier_harness import FILE_BYTES, Native, config_of, files, tier
from vllm.v1.kv_offload.base import LookupResult

from lmkv._C import Faults, fault_engine

sys.path.insert(0, str(Path(__file__).parent.parent / "store"))
from mounts import FaultyFuse

# Steps take microseconds to milliseconds; the rest is for a busy machine.
SLOWEST_CALL = 2.0


@pytest.fixture
def make(tiny_model, root, monkeypatch):
    """Makes managers, over faults where some are given, which end before they are shut down."""
    made = []

    def make(faults="", path=root, **settings):
        injected = Faults(faults)
        with monkeypatch.context() as patch:
            patch.setattr(
                "lmkv.vllm.tier_start.Engine", lambda options: fault_engine(options, injected)
            )
            made.append(Native(config_of(tiny_model, tier(path, **settings))))
        made[-1].faults = injected
        return made[-1]

    yield make
    for native in made:
        native.faults.change("")
        native.faults.release()
        native.close()


@pytest.fixture
def fuse(tmp_path):
    filesystem = FaultyFuse(tmp_path / "fuse")
    yield filesystem
    filesystem.remove()


@pytest.fixture
def impatient(monkeypatch):
    """As in an engine's step."""
    monkeypatch.setattr("lmkv.vllm.lookup.WAIT_SECONDS", 0.001)


def find_all_at_once(native, prompt):
    """A look-up of five chunks that waits for the filesystem, as a step does not. The first begins
    to be promoted and may come before the last is answered, so there is no second one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmkv.vllm.lookup.WAIT_SECONDS", 30.0)
        native.tier._lookup.begin_step()
        assert native.look_up(prompt) == [LookupResult.HIT_PENDING] * 5


def test_a_chunk_is_found_and_loaded_before_its_file_is_there(make, root):
    native = make("write.hang")
    prompt = native.prompt("a document", 4)
    native.compute(prompt)
    native.idle()  # the rows are free again
    native.until(lambda: native.faults.hanging() > 0)
    assert not files(root)
    native.finish(prompt)
    native.manager.primary_tier.reset_cache()
    assert native.load("a document", 4) == 4
    assert native.totals["memory_hits"] == 4
    native.faults.release()
    native.faults.change("")
    native.settle()
    assert len(files(root)) == 4


@pytest.mark.parametrize("fault", ["write.eio", "write.enospc", "rename.erofs", "open.estale"])
def test_a_store_that_fails_is_a_miss_and_no_error(make, root, fault):
    native = make(fault)
    native.store("a document", 5)
    assert not files(root)
    assert native.load("b document", 2) == 0
    counted = native.totals
    assert counted.get("stores_failed", 0) + counted.get("stores_dropped_full", 0) > 0
    assert native.slowest < SLOWEST_CALL


def test_a_load_that_fails_is_recomputed_and_the_others_come(make, root):
    make().store("a document", 20)
    native = make("read.corrupt:0.2")
    came = native.load("a document", 20)
    assert came < 20
    assert native.totals["chunks_bad"] > 0
    assert native.totals["chunks_loaded"] == 20 - native.totals["loads_failed"]
    assert len(files(root)) == 20 - native.totals["chunks_bad_removed"]


def test_a_load_that_cannot_be_started_is_recomputed(make, monkeypatch, lines):
    make().store("a document", 5)
    native = make()
    engine = native.tier._core.engine

    class Refusing:
        def load(self, chunks, used_at):
            raise RuntimeError("no more")

        def __getattr__(self, name):
            return getattr(engine, name)

    monkeypatch.setattr(native.tier._jobs, "_engine", Refusing())
    assert native.load("a document", 5) == 0
    assert native.load("a document", 5) == 0
    assert sum("a load could not be started: no more" in line for line in lines()) == 1


def test_a_directory_out_of_service_is_not_looked_into_and_comes_back(make, root, lines):
    first = make()
    first.store("a document", 5)
    first.store("b document", 5)
    native = make("read.eio")
    assert native.load("a document", 5) == 0
    native.until(lambda: native.gauges.get("loads_out_of_service") == 1)
    assert native.look_up(native.prompt("b document", 5)) == [LookupResult.MISS]
    native.faults.change("")
    native.until(lambda: native.gauges.get("loads_out_of_service") == 0)
    assert [line for line in lines() if "is out of service for loads" in line]
    assert [line for line in lines() if "is back in service for loads" in line]
    native.store("another", 5)
    native.manager.primary_tier.reset_cache()
    assert native.load("another", 5) == 5


def test_a_lookup_of_a_filesystem_that_hangs_becomes_a_miss(make, fuse, impatient):
    make(path=fuse.path).store("a document", 5)
    native = make(path=fuse.path)
    fuse.freeze()
    prompt = native.prompt("a document", 5)
    begin = time.monotonic()
    assert native.look_up(prompt) == [LookupResult.RETRY] * 5
    native.until(lambda: LookupResult.MISS in native.look_up(prompt))
    assert 0.5 < time.monotonic() - begin < 3
    begin = time.monotonic()
    assert native.load("another", 5) == 0
    assert time.monotonic() - begin < 3
    native.until(lambda: native.totals.get("lookups_given_up", 0) > 0)
    assert native.slowest < SLOWEST_CALL
    fuse.thaw()
    native.until(lambda: native.load("a document", 5) == 5)


def test_stores_to_a_filesystem_that_hangs_hold_no_rows(make, fuse, impatient):
    native = make(path=fuse.path, host_memory="1MiB")  # 15 chunks
    fuse.freeze()
    begin = time.monotonic()
    for number in range(3):
        native.compute(native.prompt(f"document {number}", 20))
    native.idle()
    # What found no memory was waited for, once for all.
    assert 0.5 < time.monotonic() - begin < 4
    assert not any(chunk.ref_cnt for chunk in native.manager.primary_tier._policy.chunks.values())
    assert native.totals["stores_dropped"] > 40
    assert native.slowest < SLOWEST_CALL
    fuse.thaw()


WAIT_FOR_MEMORY = "lmkv.vllm.tier_jobs.STORE_WAIT_SECONDS"


@pytest.fixture
def behind_loads(make, monkeypatch):
    """Loads of 20 chunks hang, with 15 in all of the host memory, and 20 are to be stored."""
    monkeypatch.setattr(WAIT_FOR_MEMORY, 60.0)
    make().store("a document", 20)
    native = make("read.hang", host_memory="1MiB")
    native.look_up(native.prompt("a document", 20))
    native.step()
    native.until(lambda: native.faults.hanging() > 0)
    native.compute(native.prompt("another", 20))
    native.step()
    return native


def test_stores_wait_for_loads_that_have_the_memory(behind_loads, root):
    for _ in range(5):
        behind_loads.step()
    behind_loads.faults.change("")
    behind_loads.faults.release()
    behind_loads.settle()
    assert len(files(root)) == 40
    assert behind_loads.totals.get("stores_dropped", 0) == 0


def test_stores_do_not_wait_for_ever_and_are_counted_once(behind_loads, root, monkeypatch):
    jobs = behind_loads.tier._jobs
    for _ in range(5):
        behind_loads.step()
    assert len(jobs._waiting) == 20
    assert behind_loads.totals.get("stores_dropped", 0) == 0
    monkeypatch.setattr(WAIT_FOR_MEMORY, 0.0)
    behind_loads.step()
    assert not jobs._waiting
    behind_loads.until(lambda: behind_loads.totals.get("stores_dropped", 0) == 20)
    assert len(files(root)) == 20


def test_stores_that_no_memory_would_help_do_not_wait(make, root):
    make().store("a document", 12)
    native = make(capacity=2 * FILE_BYTES, eviction="lru")
    native.until(lambda: native.tier._core.engine.stats()["housekeeping_passes"])
    native.compute(native.prompt("another", 10))
    assert not native.tier._jobs._waiting
    native.settle()
    assert native.totals["stores_dropped_full"] > 0
    assert native.totals.get("stores_dropped", 0) == 0


def test_loads_of_a_filesystem_that_hangs_are_given_up(make, fuse, impatient):
    make(path=fuse.path).store("a document", 5)
    native = make(path=fuse.path, load_timeout=0.5)
    prompt = native.prompt("a document", 5)
    find_all_at_once(native, prompt)
    fuse.freeze()
    begin = time.monotonic()
    native.idle()
    assert 0.4 < time.monotonic() - begin < 2
    assert native.look_up(prompt) == [LookupResult.MISS]
    assert native.totals["loads_timed_out"] == 5
    assert native.slowest < SLOWEST_CALL
    fuse.thaw()


def test_a_reset_does_not_wait_for_a_filesystem_that_hangs(make, fuse, impatient, monkeypatch):
    monkeypatch.setattr("lmkv.vllm.tier.DRAIN_SECONDS", 0.2)
    make(path=fuse.path).store("a document", 5)
    native = make(path=fuse.path)
    prompt = native.prompt("a document", 5)
    find_all_at_once(native, prompt)
    fuse.freeze()
    native.step()
    native.compute(native.prompt("another", 5))
    begin = time.monotonic()
    native.manager.reset_cache()
    assert time.monotonic() - begin < 1.5
    assert not native.manager._jobs
    fuse.thaw()


def test_shutdown_finishes_what_is_under_way(make, root):
    native = make("write.delay:1500ms")  # longer than a disk is waited for that has hung
    # One chunk: where writes are done one after another, several take longer than it waits.
    native.compute(native.prompt("a document", 1))
    native.close()
    assert len(files(root)) == 1
    native.close()


def test_shutdown_does_not_wait_for_a_filesystem_that_hangs(
    make, fuse, impatient, monkeypatch, lines
):
    monkeypatch.setattr("lmkv.vllm.tier.DRAIN_SECONDS", 0.2)
    native = make(path=fuse.path)
    fuse.freeze()
    native.compute(native.prompt("a document", 5))
    begin = time.monotonic()
    native.close()
    assert time.monotonic() - begin < 3
    assert [line for line in lines() if "a disk does not answer" in line]
    fuse.thaw()
