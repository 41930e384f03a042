"""The directory goes away under a running engine, in every way that it may, and comes back."""

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import Disk
from watched import CHUNK_BYTES, NAMESPACE, WatchedCore, chunk_files, key, temporaries

from lmkv import _C

SIZE = 64 << 20
BEFORE = [f"before{n}" for n in range(8)]
MakeDisk = Callable[..., Disk]


def filled(root: Path, **options: object) -> WatchedCore:
    core = WatchedCore(root, **options)
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    return core


def found(root: Path) -> int:
    directory = _C.Directory(root=str(root), namespace=NAMESPACE, ranks=1)
    return directory.lookup([key(name) for name in BEFORE])


def test_a_disk_that_turned_read_only_still_serves_and_is_written_again_when_it_may_be(
    make_disk: MakeDisk,
) -> None:
    disk = make_disk("ext4", SIZE)
    core = filled(disk.path)
    disk.remount("ro")
    with core.counting() as counted:
        errors = core.store(*[f"ro{n}" for n in range(6)])
        assert core.load(*BEFORE) == BEFORE
        core.touch(*BEFORE)
    assert all(os.strerror(errno.EROFS) in error for error in errors[:3]), errors
    assert errors[3:] == ["dropped"] * 3
    assert (counted["stores_failed"], counted["stores_dropped_out_of_service"]) == (3, 3)
    assert counted["stores_out_of_service"] == 1
    assert counted["bytes_loaded"] >= 4 * CHUNK_BYTES
    assert core.stat("loads_out_of_service") == counted["loads_failed"] == 0
    disk.remount("rw")
    core.wait_to_store("after")
    assert core.stat("stores_out_of_service") == 0
    assert temporaries(disk.path) == []
    core.close()


def test_a_directory_that_was_removed_is_a_miss_and_not_made_again_by_us(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    core = filled(root)
    shutil.rmtree(root)
    with core.counting() as counted:
        errors = core.store(*[f"gone{n}" for n in range(5)])
        assert core.load(*BEFORE[:4]) == []  # what is in the slabs is the last ones
    assert all(os.strerror(errno.ENOENT) in error for error in errors[:3]), errors
    assert errors[3:] == ["dropped"] * 2
    assert (counted["stores_failed"], counted["chunks_missing"]) == (3, 4)
    assert core.stat("loads_out_of_service") == 0
    assert found(root) == 0
    assert not root.exists()
    root.mkdir(mode=0o700)
    after = core.wait_to_store("after")
    assert core.load(after) == [after]
    core.close()
    assert len(chunk_files(root)) == 1


def test_all_below_the_directory_was_removed_while_it_was_as_full_as_it_may_be(
    tmp_path: Path,
) -> None:
    """What is counted as there is not, and nobody can take the lease that lay there to find out."""
    capacity = (len(BEFORE) * CHUNK_BYTES) + CHUNK_BYTES // 2
    core = filled(tmp_path, capacity=capacity)
    shutil.rmtree(tmp_path / "v1")
    core.wait_to_store("after", seconds=10)
    assert core.stat("stores_dropped_full") > 0
    core.close()


def test_an_empty_mount_point_is_not_counted_as_an_empty_directory(make_disk: MakeDisk) -> None:
    disk = make_disk("ext4", SIZE)
    core = filled(disk.path, capacity=len(BEFORE) * CHUNK_BYTES + CHUNK_BYTES // 2)
    used = core.stat("store_bytes_used")
    disk.unmount()
    passes, failures = core.stat("housekeeping_passes"), core.stat("housekeeping_failures")
    deadline = time.monotonic() + 30
    # Each round that looks at it fails at least once.
    while core.stat("housekeeping_failures") < failures + 10:
        assert time.monotonic() < deadline
        assert core.store("gone") == ["dropped"]
    assert (core.stat("housekeeping_passes"), core.stat("store_bytes_used")) == (passes, used)
    assert list(disk.path.iterdir()) == []
    core.close()


def test_a_mount_that_went_away_leaves_its_mount_point_empty_and_is_used_when_it_is_back(
    make_disk: MakeDisk,
) -> None:
    disk = make_disk("ext4", SIZE)
    core = filled(disk.path)
    disk.unmount()
    with core.counting() as counted:
        errors = core.store(*[f"gone{n}" for n in range(5)])
        assert core.load(*BEFORE[:4]) == []
    assert all(os.strerror(errno.ENODEV) in error for error in errors[:3]), errors
    assert errors[3:] == ["dropped"] * 2
    assert (counted["stores_failed"], counted["chunks_missing"]) == (3, 4)
    assert list(disk.path.iterdir()) == []
    assert found(disk.path) == 0
    disk.mount()
    core.wait_to_load(*BEFORE)
    core.wait_to_store("after")
    core.close()
    assert temporaries(disk.path) == []
    disk.unmount()
    assert list(disk.path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_what_is_mounted_again_may_have_another_device_number(
    make_disk: MakeDisk, kind: str
) -> None:
    """As loop devices, NFS and FUSE have each time. A tmpfs is empty as well."""
    disk = make_disk(kind, SIZE)
    core = filled(disk.path, free_space_floor=1.0)
    device = disk.device()
    disk.unmount()
    assert os.strerror(errno.ENODEV) in core.store("gone")[0]
    disk.mount(elsewhere=True)
    if kind == "ext4":
        assert disk.device() != device
        core.wait_to_load(*BEFORE)
    for attempt in range(4):  # each in a directory that is not there yet
        core.wait_to_store(f"after{attempt}-")
    with core.counting() as counted:
        time.sleep(2.2)  # looks at the free space
    assert counted["housekeeping_failures"] == 0
    core.close()
