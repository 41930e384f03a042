"""A filesystem that answers with errors: EIO on reads, on writes, on everything."""

import errno
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import FaultyFuse
from watched import WatchedCore, chunk_files, file_of, temporaries

BEFORE = [f"before{n}" for n in range(8)]


@pytest.fixture(params=["io_uring", "threads"])
def core(request: pytest.FixtureRequest, fuse: FaultyFuse) -> WatchedCore:
    core = WatchedCore(fuse.path, io_engine=request.param)
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    return core


def test_a_chunk_that_cannot_be_read_is_bad_and_is_stored_again(
    core: WatchedCore, fuse: FaultyFuse
) -> None:
    fuse.set(read="EIO")
    with core.counting() as counted:
        assert core.load(*BEFORE[:2]) == []
    assert counted["chunks_bad"] == counted["chunks_bad_removed"] == counted["loads_failed"] == 2
    assert not file_of(fuse.source, BEFORE[0]).exists()
    fuse.set()
    assert core.load(*BEFORE[:2]) == []
    assert core.store(*BEFORE[:2]) == ["", ""]
    assert core.load(*BEFORE) == BEFORE
    core.close()


@pytest.mark.parametrize("failing", ["write", "create", "fsync", "rename"])
def test_stores_that_fail_leave_nothing_and_resume(
    core: WatchedCore, fuse: FaultyFuse, failing: str
) -> None:
    fuse.set(**{failing: "EIO"})
    with core.counting() as counted:
        errors = core.store(*[f"failed{n}" for n in range(5)])
        assert core.load(*BEFORE) == BEFORE
    assert all(os.strerror(errno.EIO) in error for error in errors[:3]), errors
    assert errors[3:] == ["dropped"] * 2
    assert (counted["stores_failed"], counted["stores_dropped_out_of_service"]) == (3, 2)
    assert counted["loads_failed"] == 0
    assert temporaries(fuse.source) == []
    assert len(chunk_files(fuse.source)) == len(BEFORE)
    fuse.set()
    core.wait_to_store("after")
    core.close()


def test_a_disk_that_fails_at_everything_costs_no_chunk(
    core: WatchedCore, fuse: FaultyFuse
) -> None:
    fuse.set(all="EIO")
    with core.counting() as counted:
        assert core.load(*BEFORE[:4]) == core.load(*BEFORE[:4]) == []
        assert "dropped" not in core.store(*[f"failed{n}" for n in range(3)])
    assert counted["loads_refused"] >= 4
    assert counted["stores_failed"] == 3
    assert (counted["loads_out_of_service"], counted["stores_out_of_service"]) == (1, 1)
    fuse.set()
    core.wait_to_load(*BEFORE)
    core.wait_to_store("after")
    assert core.stat("chunks_bad_removed") == 0
    core.close()
