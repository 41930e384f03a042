"""A filesystem that stops answering, and answers again: nobody waits for it, and all comes back."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import FaultyFuse, wait_for
from watched import (
    CHUNK_BYTES,
    NAMESPACE,
    PAYLOAD,
    PLACES,
    UNTOUCHED,
    WatchedCore,
    chunk_files,
    key,
    temporaries,
)

from lmkv import _C

LOAD_TIMEOUT = 0.5
BEFORE = [f"before{n}" for n in range(8)]


@pytest.fixture(params=["io_uring", "threads"])
def core(request: pytest.FixtureRequest, fuse: FaultyFuse) -> Iterator[WatchedCore]:
    core = WatchedCore(fuse.path, load_timeout=LOAD_TIMEOUT, io_engine=request.param)
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    yield core
    fuse.set()
    fuse.thaw()
    core.engine.close()


@pytest.mark.parametrize("hanging", ["read", "open", "getattr", "everything"])
def test_loads_that_hang_are_given_up_in_time_and_come_again_when_it_answers(
    core: WatchedCore, fuse: FaultyFuse, hanging: str
) -> None:
    if hanging == "everything":
        fuse.freeze()
    else:
        fuse.set(**{hanging: "hang"})
    with core.counting() as counted:
        begin = time.monotonic()
        hung = core.wait(core.begin_load(*BEFORE[:4]))
        assert LOAD_TIMEOUT <= time.monotonic() - begin < LOAD_TIMEOUT + 1.5
        assert core.check(tuple(BEFORE[:4]), hung) == []
        begin = time.monotonic()
        assert core.load(*BEFORE[:4]) == []  # at once: it is out of service
        assert time.monotonic() - begin < LOAD_TIMEOUT / 2
    assert counted["loads_timed_out"] == counted["loads_refused"] == 4
    assert counted["loads_failed"] == 8
    assert counted["loads_out_of_service"] == 1
    assert counted["chunks_bad"] == counted["chunks_missing"] == 0
    target = core.memory.raw[PLACES // 2 * PAYLOAD :]
    fuse.set()
    fuse.thaw()
    wait_for(lambda: not core.stat("load_bytes_in_flight"))
    assert core.memory.raw[PLACES // 2 * PAYLOAD :] == target  # what came late went nowhere
    assert target == UNTOUCHED * len(target)
    core.wait_to_load(*BEFORE)
    assert core.stat("loads_out_of_service") == 0
    assert core.store("after") == [""]
    core.close()


def test_stores_that_hang_cost_other_stores_and_no_load(fuse: FaultyFuse) -> None:
    core = WatchedCore(fuse.path)
    assert core.engine.info()["io_engine"] == "threads"  # a ring's would wait for each write
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    fuse.set(write="hang")
    jobs = [core.begin_store(f"hung{n}") for n in range(3)]
    assert all(jobs)
    wait_for(lambda: core.stat("store_bytes_in_flight"))
    with core.counting() as counted:
        assert core.store("one more") == ["dropped"]
        assert core.load(*BEFORE) == BEFORE
    assert counted["stores_dropped"] == 1
    assert counted["bytes_loaded"] >= 4 * CHUNK_BYTES
    assert len(chunk_files(fuse.source)) == len(BEFORE)
    fuse.set()
    assert [core.wait(job).error for job in jobs] == [""] * 3
    assert core.store("after") == [""]
    assert temporaries(fuse.source) == []
    core.close()


@pytest.mark.parametrize("hanging", ["create", "rename", "release", "fsync", "utimens"])
def test_a_store_that_hangs_anywhere_is_no_file_until_it_goes_on(
    core: WatchedCore, fuse: FaultyFuse, hanging: str
) -> None:
    fuse.set(**{hanging: "hang"})
    job = core.begin_store("hung")
    wait_for(lambda: core.stat("store_bytes_in_flight"))
    time.sleep(0.2)
    assert len(chunk_files(fuse.source)) == len(BEFORE)
    fuse.set()
    assert core.wait(job).error == ""
    assert len(chunk_files(fuse.source)) == len(BEFORE) + 1
    assert temporaries(fuse.source) == []
    core.close()


def test_closing_is_bounded_while_loads_and_stores_hang(
    core: WatchedCore, fuse: FaultyFuse
) -> None:
    fuse.freeze()
    store, load = core.begin_store("hung"), core.begin_load(*BEFORE[:4])
    assert store
    begin = time.monotonic()
    assert not core.engine.close(1.0)
    assert time.monotonic() - begin < 5
    core.poll()
    assert core.check(tuple(BEFORE[:4]), core.wait(load)) == []
    assert core.begin_store("later") == 0
    fuse.thaw()
    assert core.engine.close(30)
    assert temporaries(fuse.source) == []


def test_lookups_give_up_count_and_find_again(fuse: FaultyFuse, core: WatchedCore) -> None:
    keys = [key(name) for name in BEFORE]
    lookups = _C.LookupService(_C.Directory(root=str(fuse.path), namespace=NAMESPACE, ranks=1))

    def ask() -> int | None:
        begin = time.monotonic()
        answer = lookups.lookup(keys, 0.001)
        assert time.monotonic() - begin < 0.1
        return answer

    wait_for(lambda: ask() == len(keys))
    lookups.forget()
    fuse.freeze()
    begin = time.monotonic()
    assert ask() is None
    wait_for(lambda: ask() == 0)
    assert 0.8 < time.monotonic() - begin < 3
    assert lookups.given_up() > 0
    fuse.thaw()
    wait_for(lambda: ask() == len(keys))
    core.close()
