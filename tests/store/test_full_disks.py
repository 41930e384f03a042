"""Disks that are full, really: stores fail and are counted, loads go on, and all comes back."""

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import Disk, FaultyFuse, wait_for
from watched import CHUNK_BYTES, WatchedCore, chunk_files, temporaries

SIZES = {"ext4": 64 << 20, "xfs": 320 << 20, "tmpfs": 32 << 20}  # xfs makes none below 300 MiB
BEFORE = [f"before{n}" for n in range(8)]  # more than the engine has slabs: loads read the disk


@pytest.mark.parametrize("kind", SIZES)
def test_a_disk_that_others_fill_fails_stores_only_and_only_until_they_leave(
    make_disk: Callable[..., Disk], kind: str
) -> None:
    disk = make_disk(kind, SIZES[kind])
    core = WatchedCore(disk.path)
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    disk.fill()
    with core.counting() as counted:
        errors = core.store(*[f"full{n}" for n in range(6)])
        assert all(os.strerror(errno.ENOSPC) in error for error in errors), errors
        assert core.load(*BEFORE) == BEFORE
    assert counted["stores_failed"] == 6
    assert counted["bytes_loaded"] >= 4 * CHUNK_BYTES  # and not from the slabs
    assert counted["chunks_stored"] == counted["loads_failed"] == counted["chunks_bad"] == 0
    assert core.stat("stores_out_of_service") == 0  # a full disk is not a broken one
    assert temporaries(disk.path) == []
    disk.empty()
    assert core.store("after") == [""]
    core.close()
    assert not [file for file in chunk_files(disk.path) if file.stat().st_size != CHUNK_BYTES]


@pytest.mark.parametrize("kind", ["xfs", "tmpfs"])  # of ext4: test_capacity.py
def test_room_is_made_on_a_disk_that_stays_full(make_disk: Callable[..., Disk], kind: str) -> None:
    disk = make_disk(kind, SIZES[kind])
    core = WatchedCore(disk.path)
    core.wait_for_scan()
    names = [f"before{n}" for n in range(24)]
    assert core.store(*names) == [""] * len(names)
    disk.fill()
    assert core.store("full") != [""]
    core.wait_to_store("after")  # once what is there is no longer spared: 5 seconds
    wait_for(lambda: core.stat("chunks_evicted_full_disk") == core.stat("chunks_evicted") == 16)
    came = core.load(*names)
    assert set(came) < set(names)
    assert core.stat("chunks_missing") == len(names) - len(came)
    assert core.stat("chunks_bad") == 0
    assert temporaries(disk.path) == []
    core.close()


def test_a_quota_fails_stores_though_the_disk_has_room_and_more_of_it_is_used_at_once(
    fuse: FaultyFuse,
) -> None:
    """By FUSE: kernels are built without quotas, as the one that these tests know best."""
    core = WatchedCore(fuse.path)
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    fuse.set(quota=len(BEFORE) * CHUNK_BYTES + 1000)
    with core.counting() as counted:
        errors = core.store(*[f"over{n}" for n in range(4)])
        assert all(os.strerror(errno.EDQUOT) in error for error in errors), errors
        assert core.load(*BEFORE) == BEFORE
    assert counted["stores_failed"] == 4
    assert counted["loads_failed"] == core.stat("stores_out_of_service") == 0
    assert temporaries(fuse.source) == []
    fuse.set()
    assert core.store("after") == [""]
    core.close()


def test_within_a_quota_that_stays_room_is_made(fuse: FaultyFuse) -> None:
    core = WatchedCore(fuse.path)
    core.wait_for_scan()
    names = [f"before{n}" for n in range(20)]
    assert core.store(*names) == [""] * len(names)
    fuse.set(quota=len(names) * CHUNK_BYTES + 1000)
    begin = time.monotonic()
    assert core.store("over") != [""]
    core.wait_to_store("after")
    assert time.monotonic() - begin > 4  # what was stored a moment ago is not what goes
    wait_for(lambda: core.stat("chunks_evicted_full_disk") == 16)
    core.close()
