"""Whatever lies in the place of a chunk: never followed, read as KV or waited for, and replaced.

Each case is loaded, looked up and stored by real engines, of both kinds.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmkv import _C

sys.path.insert(0, str(Path(__file__).parent))
from hostile import (
    CHUNK_BYTES,
    NAMESPACE,
    NO_FILES,
    STUCK,
    WRONG_BYTES,
    WRONG_SIZES,
    Place,
    Put,
    chunk_path,
    engine,
    fill,
    key,
    make_outside,
    snapshot,
)

GOOD, VICTIM = 2, 1
EVERYTHING = NO_FILES | WRONG_SIZES | WRONG_BYTES | STUCK
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def io_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        with engine(tmp_path_factory.mktemp("try"), request.param):
            return request.param
    except _C.ConfigError as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    make_outside(folder / "outside")
    fill(folder / "root", GOOD, VICTIM)
    return folder


@pytest.fixture
def place(templates: Path, tmp_path: Path) -> Iterator[Place]:
    root, outside = tmp_path / "root", tmp_path / "outside"
    shutil.copytree(templates / "root", root, symlinks=True)
    outside.mkdir()
    for entry in (templates / "outside").iterdir():  # a FIFO cannot be copied
        if stat.S_ISFIFO(entry.lstat().st_mode):
            os.mkfifo(outside / entry.name)
        elif entry.is_dir():
            shutil.copytree(entry, outside / entry.name)
        else:
            shutil.copy2(entry, outside / entry.name)
    path = chunk_path(root, VICTIM)
    good = path.read_bytes()
    path.unlink()
    yield Place(path, good, outside)
    if path.is_file() and not path.is_symlink():
        subprocess.run(["chattr", "-i", path], check=False, capture_output=True)


def root_of(place: Place) -> Path:
    return place.path.parents[4]


def is_whole(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == CHUNK_BYTES and status.st_nlink == 1


@pytest.mark.parametrize("put", EVERYTHING.values(), ids=EVERYTHING)
def test_a_load_misses_and_removes_what_is_ours_and_a_store_heals(
    place: Place, put: Put, io_engine: str
) -> None:
    put(place)
    before = snapshot(place.outside)
    stuck = put in STUCK.values()
    root = root_of(place)
    with engine(root, io_engine) as reader:
        assert reader.load(VICTIM, GOOD) == [False, True]
        stats = reader.stats()
        assert (stats["loads_failed"], stats["chunks_bad"]) == (1, 1)
        assert stats["chunks_bad_removed"] == (0 if stuck else 1)
        assert os.path.lexists(place.path) == stuck
        assert (stats["loads_out_of_service"], stats["stores_out_of_service"]) == (0, 0)
        if not stuck:
            assert reader.store(VICTIM) == ""
    if not stuck:
        with engine(root, io_engine) as reader:
            assert reader.load(VICTIM) == [True]
        assert is_whole(place.path)
    assert snapshot(place.outside) == before


@pytest.mark.parametrize("put", EVERYTHING.values(), ids=EVERYTHING)
def test_a_store_over_it_replaces_it_or_is_counted_and_writes_nowhere_else(
    place: Place, put: Put, io_engine: str
) -> None:
    put(place)
    before = snapshot(place.outside)
    root = root_of(place)
    with engine(root, io_engine) as writer:
        error = writer.store(VICTIM)
        stats = writer.stats()
    taken_for_the_chunk = put in WRONG_BYTES.values() or put is STUCK["immutable_file"]
    if put is STUCK["directory_in_use"]:
        assert error
        assert stats["stores_failed"] == 1
        assert (place.path / "users own").exists()
    elif taken_for_the_chunk:  # a load finds that out, and removes it
        assert stats["stores_already_present"] == 1
    else:
        assert error == ""
        assert stats["chunks_stored"] == 1
        assert is_whole(place.path)
        with engine(root, io_engine) as reader:
            assert reader.load(VICTIM) == [True]
    assert [path.name for path in root.rglob("*-*")] == []  # nothing half written is left
    assert snapshot(place.outside) == before


@pytest.mark.parametrize("put", EVERYTHING.values(), ids=EVERYTHING)
def test_a_lookup_answers(place: Place, put: Put) -> None:
    put(place)
    before = snapshot(place.outside)
    directory = _C.Directory(root=str(root_of(place)), namespace=NAMESPACE, ranks=1)
    there = directory.present([key(VICTIM), key(GOOD), key(3)])
    assert there[1:] == [True, False]
    leads_somewhere = put not in (NO_FILES["dangling_link"], NO_FILES["link_to_itself"])
    assert there[0] == leads_somewhere  # a hint: the load decides
    assert snapshot(place.outside) == before


def test_a_hard_link_to_the_chunk_itself_is_the_chunk(place: Place, io_engine: str) -> None:
    backup = place.outside / "backup"
    backup.write_bytes(place.good)
    os.link(backup, place.path)
    with engine(root_of(place), io_engine) as reader:
        assert reader.load(VICTIM) == [True]
    assert backup.read_bytes() == place.good
