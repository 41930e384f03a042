"""A directory stays within its limits, with the real thing: several processes, small disks."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from prompts import CHUNK_BYTES, STORE_DEPTH, Core

HERE = Path(__file__).parent

Mount = Callable[[int], Path]


def used_below(root: Path) -> int:
    """Bytes that files take; they may come and go meanwhile."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def chunks_below(root: Path) -> int:
    return sum(1 for _ in root.glob("v1/*/r0/*/*.kv"))


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(root: Path, name: str, capacity: int, amount: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, HERE / "fill.py", str(root), name, str(capacity), str(amount)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_two_processes_fill_it_thrice_and_it_stays_within_and_keeps_what_is_hot(
    loop_ext4: Mount,
) -> None:
    root = loop_ext4(2 << 30)
    capacity = 1 << 30
    hot = Core(str(root), capacity=capacity, free_space_floor=2)
    hot.wait_for_scan()
    assert hot.store("hot", 8) == 8
    hot.engine.close()

    writers = [fill(root, name, capacity, 3 * capacity // 2) for name in ("a", "b")]
    most = 0
    while any(writer.poll() is None for writer in writers):
        most = max(most, used_below(root / "v1"))
        time.sleep(0.02)
    reports = []
    for writer in writers:
        out, errors = writer.communicate()
        assert writer.returncode == 0, errors
        reports.append(json.loads(out))

    total = {name: sum(report[name] for report in reports) for name in reports[0]}
    print(f"most used: {most / 1e6:.0f} MB of {capacity / 1e6:.0f}", total)
    # Of each writer: what is in flight, and what it admitted since it last looked at the disk.
    assert most <= capacity + 2 * (2 * STORE_DEPTH + CHUNK_BYTES)
    assert total["bytes_stored"] >= 3 * capacity
    assert total["stores_failed"] == total["chunks_bad"] == 0
    assert total["chunks_evicted"] > 500
    assert total["found"] > 0.95 * total["asked"]
    assert {file.suffix for file in root.glob("v1/*/r0/*/*")} == {".kv"}


def test_the_floor_of_a_small_disk_is_kept(loop_ext4: Mount) -> None:
    root = loop_ext4(256 << 20)
    core = Core(str(root), free_space_floor=25)
    core.wait_for_scan()
    for index in range(120):
        core.store(f"p{index}", 1)
        disk = os.statvfs(root)
        assert disk.f_bavail >= 0.25 * disk.f_blocks - (CHUNK_BYTES // disk.f_frsize)
    stats = core.engine.stats()
    assert stats["stores_failed"] == 0
    assert stats["chunks_stored"] > 20
    core.engine.close()


def test_a_disk_that_others_fill_makes_stores_fail_and_then_room(
    loop_ext4: Mount,
) -> None:
    root = loop_ext4(256 << 20)
    core = Core(str(root), free_space_floor=0)
    core.wait_for_scan()
    assert core.store("before", 4) == 4
    ballast = root / "of somebody else"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
        os.posix_fallocate(file.fileno(), 0, os.statvfs(root).f_bavail * 4096 + (64 << 20))
    free = os.statvfs(root)
    with ballast.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(free.f_bavail - 16, 1) * 4096)
    core.store("full", 1)
    assert core.engine.stats()["stores_failed"] == 1
    assert core.load("before", 4) == 4  # loads go on
    attempts = itertools.count()

    def stored() -> bool:
        core.store(f"after{next(attempts)}", 1)
        time.sleep(0.1)
        return core.engine.stats()["chunks_stored"] > 4

    wait_for(stored)  # once what is there is no longer spared
    assert core.engine.stats()["chunks_evicted"] > 0
    assert ballast.exists()
    core.engine.close()


def test_a_file_of_a_process_that_was_killed_counts_and_is_swept(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, HERE / "fill.py", str(tmp_path), "a", str(1 << 30), str(1 << 40)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    wait_for(lambda: chunks_below(tmp_path) > 2)

    def unfinished() -> list[Path]:
        return [file for file in tmp_path.glob("v1/*/r0/*/*") if file.suffix != ".kv"]

    def killed_while_writing() -> bool:
        writer.send_signal(signal.SIGSTOP)
        if unfinished():
            writer.send_signal(signal.SIGKILL)
            return True
        writer.send_signal(signal.SIGCONT)
        return False

    wait_for(killed_while_writing)
    writer.wait()
    left = unfinished()
    assert left
    for dead in left:
        os.utime(dead, (time.time() - 7200, time.time() - 7200))
    core = Core(str(tmp_path), free_space_floor=0)
    wait_for(lambda: not unfinished())
    wait_for(lambda: core.engine.stats()["temporaries_removed"] == len(left))
    core.engine.close()


@pytest.mark.timeout(120)
def test_close_returns_though_the_filesystem_does_not_answer(tmp_path: Path) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse, which this machine does not give")
    source, mount = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    mount.mkdir()
    server = subprocess.Popen(
        [sys.executable, HERE.parent / "vllm" / "fuse_without_direct_io.py", source, mount]
    )
    try:
        wait_for(mount.is_mount)
        core = Core(str(mount), capacity=1 << 30, free_space_floor=0)
        core.wait_for_scan()
        server.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # the thread looks at the disk every second
        begin = time.monotonic()
        core.engine.close()
        took = time.monotonic() - begin
        assert 1.5 < took < 6
        server.send_signal(signal.SIGCONT)
    finally:
        server.send_signal(signal.SIGCONT)
        subprocess.run(["fusermount3", "-uz", str(mount)], check=False)
        server.wait(timeout=20)
