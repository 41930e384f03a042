"""Clocks that are wrong: a host's, the filesystem's, or this one's before it was set."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import Disk, FaultyFuse, wait_for
from watched import CHUNK_BYTES, WatchedCore, chunk_files, file_of, temporaries

from lmkv import tree, tree_cleanup

YEAR = 365 * 86400
NAMES = [f"chunk{n}" for n in range(20)]
CAPACITY = len(NAMES) * CHUNK_BYTES + CHUNK_BYTES // 2  # eviction goes down to 19


def stamp(path: Path, ahead: float) -> None:
    """As an engine whose clock is ahead by so much would have."""
    then = time.time() + ahead
    os.utime(path, (then, then))


def filled(root: Path) -> None:
    core = WatchedCore(root)
    assert core.store(*NAMES) == [""] * len(NAMES)
    core.close()


def test_what_was_stamped_in_the_future_goes_first_and_what_was_long_ago_next(
    tmp_path: Path,
) -> None:
    filled(tmp_path)
    for number, name in enumerate(NAMES):
        stamp(file_of(tmp_path, name), -60 - number)
    for name, ahead in (("chunk3", YEAR), ("chunk4", YEAR - 1), ("chunk5", -50 * YEAR)):
        stamp(file_of(tmp_path, name), ahead)
    core = WatchedCore(tmp_path, capacity=CAPACITY)
    gone: list[str] = []
    deadline = time.monotonic() + 40  # what changed a moment ago is spared for 5 seconds
    while len(gone) < 4 and time.monotonic() < deadline:
        core.store(f"new{time.monotonic()}")
        time.sleep(0.1)
        gone += [
            name for name in NAMES if name not in gone and not file_of(tmp_path, name).exists()
        ]
    # Several may go between two looks: those of a look have no order.
    wrong = {"chunk3", "chunk4", "chunk5"}
    others = [name for name in gone if name not in wrong]
    assert wrong <= set(gone)
    assert sorted(others) == sorted(NAMES[len(NAMES) - len(others) :])
    core.close()


def test_a_use_sets_a_time_of_the_future_right(tmp_path: Path) -> None:
    filled(tmp_path)
    loaded, touched, stored, near = (file_of(tmp_path, name) for name in NAMES[:4])
    for path in (loaded, touched, stored):
        stamp(path, YEAR)
    stamp(near, 1800)
    core = WatchedCore(tmp_path)
    assert core.load(NAMES[0]) == [NAMES[0]]
    core.touch(NAMES[1], NAMES[3])
    assert core.store(NAMES[2]) == [""]
    for path in (loaded, touched, stored):
        wait_for(lambda path=path: abs(path.stat().st_mtime - time.time()) < 10)
    # Clocks of hosts may differ by minutes: they do not undo each other's uses.
    assert near.stat().st_mtime > time.time() + 1000
    core.close()


def test_a_request_of_an_hour_ends_with_its_tail_older_than_its_head(tmp_path: Path) -> None:
    core = WatchedCore(tmp_path)
    begun = time.time() - 3600
    for number in range(2):
        job = core.begin_store(NAMES[number], used_at=begun, token_begin=64 * number)
        assert core.wait(job).error == ""
        time.sleep(2.1)  # a tick of uses
    head, tail = (file_of(tmp_path, name).stat() for name in NAMES[:2])
    assert head.st_mtime_ns // 1000 - tail.st_mtime_ns // 1000 == 64  # a microsecond for each token
    assert abs(head.st_mtime - begun) < 3
    assert core.stat("touches_failed") == 0
    core.close()


def test_a_directory_whose_every_time_is_of_the_future_is_evicted_from_and_swept(
    make_disk: Callable[..., Disk],
) -> None:
    """As it is when the clock was years ahead, and was set back: the times of change, too."""
    disk = make_disk("ext4", 64 << 20)
    filled(disk.path)
    beside = chunk_files(disk.path)[0].parent
    left = [beside / f"host-77-{n:016x}" for n in range(2)]
    for path in left:
        path.write_bytes(bytes(8192))
    inside = [path.relative_to(disk.path) for path in (*chunk_files(disk.path), *left)]
    disk.unmount()
    disk.edit(
        *[f"set_inode_field /{path} {time} 20370601000000"
          for path in inside for time in ("ctime", "mtime")]
    )  # fmt: skip
    disk.mount()
    assert left[0].stat().st_ctime > time.time() + YEAR

    assert tree.verify(str(disk.path)).abandoned == 2
    cleaned = tree_cleanup.clean(str(disk.path), to_bytes=18 * CHUNK_BYTES)
    assert (cleaned.chunks, cleaned.abandoned) == (2, 2)
    assert temporaries(disk.path) == []
    left[0].write_bytes(bytes(8192))
    stamp(left[0], 10 * YEAR)
    core = WatchedCore(disk.path, capacity=CAPACITY - 2 * CHUNK_BYTES)
    core.wait_for_scan()
    for number in range(4):
        core.wait_to_store(f"new{number}-")
    assert core.stat("chunks_evicted") >= 3
    assert left[0].exists()  # somebody writes to it now, by whatever clock
    core.close()
    assert sum(file_of(disk.path, name).exists() for name in NAMES) <= 15


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_a_filesystem_with_another_clock_loses_nothing_that_is_being_written(
    fuse: FaultyFuse, ahead: int
) -> None:
    fuse.set(clock=ahead)
    writer = WatchedCore(fuse.path)
    fuse.set(clock=ahead, fsync="hang")
    job = writer.begin_store("slow")
    wait_for(lambda: temporaries(fuse.source))
    time.sleep(0.5)
    other = WatchedCore(fuse.path)
    other.wait_for_scan()
    assert temporaries(fuse.source)
    assert other.stat("temporaries_removed") == 0
    fuse.set(clock=ahead)
    assert writer.wait(job).error == ""
    assert other.load("slow") == ["slow"]
    assert temporaries(fuse.source) == []
    writer.close()
    other.close()
