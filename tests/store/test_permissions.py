"""Permissions are taken away under a running engine, and given back."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from privileges import without_capabilities
from watched import CHUNK_BYTES, WatchedCore, file_of, key, temporaries

from lmkv import tree

BEFORE = [f"before{n}" for n in range(8)]
Denied = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def denied(path: Path):
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(mode)


@pytest.fixture(params=["io_uring", "threads"])
def core(request: pytest.FixtureRequest, tmp_path: Path) -> WatchedCore:
    with without_capabilities():
        core = WatchedCore(tmp_path / "kv", io_engine=request.param)
    core.wait_for_scan()
    assert core.store(*BEFORE) == [""] * len(BEFORE)
    return core


def test_a_root_that_may_not_be_entered_is_out_and_comes_back(
    core: WatchedCore, tmp_path: Path
) -> None:
    root = tmp_path / "kv"
    with core.counting() as counted, denied(root):
        errors = core.store(*[f"denied{n}" for n in range(5)])
        assert core.load(*BEFORE[:4]) == []
        assert core.load(*BEFORE[:4]) == []
    assert all(os.strerror(errno.EACCES) in error for error in errors[:3]), errors
    assert errors[3:] == ["dropped"] * 2
    assert (counted["stores_failed"], counted["stores_dropped_out_of_service"]) == (3, 2)
    assert counted["loads_failed"] == 8
    assert counted["loads_refused"] >= 4
    assert counted["chunks_bad"] == counted["chunks_missing"] == 0
    assert (counted["loads_out_of_service"], counted["stores_out_of_service"]) == (1, 1)
    core.wait_to_load(*BEFORE)
    core.wait_to_store("after")
    assert core.stat("loads_out_of_service") == core.stat("stores_out_of_service") == 0
    assert core.stat("chunks_bad_removed") == 0
    assert temporaries(root) == []
    core.close()


def test_a_directory_of_chunks_that_may_not_be_entered_costs_its_chunks_alone(
    core: WatchedCore, tmp_path: Path
) -> None:
    root = tmp_path / "kv"
    there = file_of(root, BEFORE[0])
    beside = next(
        name for name in map(str, range(100_000)) if key(name).hex()[:3] == there.parent.name
    )
    with core.counting() as counted, denied(there.parent):
        assert core.load(*BEFORE[:4]) == BEFORE[1:4]
        assert os.strerror(errno.EACCES) in core.store(beside)[0]
        assert core.store("elsewhere") == [""]
    assert (counted["loads_failed"], counted["stores_failed"]) == (1, 1)
    assert core.stat("loads_out_of_service") == core.stat("stores_out_of_service") == 0
    assert core.store(beside) == [""]
    assert core.load(*BEFORE) == BEFORE
    core.close()
    assert tree.verify(str(root)).sound == len(BEFORE) + 2


def test_a_file_that_may_not_be_read_is_neither_bad_nor_removed(
    core: WatchedCore, tmp_path: Path
) -> None:
    file = file_of(tmp_path / "kv", BEFORE[0])
    with core.counting() as counted, denied(file):
        for _ in range(4):  # more than would take the directory out, had no other been read
            assert core.load(*BEFORE) == BEFORE[1:]
    assert counted["loads_failed"] == 4
    assert counted["chunks_bad"] == counted["chunks_missing"] == counted["loads_refused"] == 0
    assert file.stat().st_size == CHUNK_BYTES
    assert core.load(*BEFORE) == BEFORE
    core.close()
