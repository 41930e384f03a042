"""Links and files in the place of directories of ours, and files of other owners.

What a link leads to is neither read, written, renamed, removed nor touched.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmkv import _C
from lmkv.cli import app

sys.path.insert(0, str(Path(__file__).parent))
from hostile import (
    CHUNK_BYTES,
    FAN_OUT,
    NAMESPACE,
    SmallEngine,
    chunk_path,
    engine,
    fill,
    key,
    snapshot,
)

pytestmark = pytest.mark.timeout(60)
SHORT = NAMESPACE.hex()[:16]
# From the outermost on.
PLACES = {"v1": "v1", "namespace": f"v1/{SHORT}", "rank": f"v1/{SHORT}/r0"}
FAN = f"v1/{SHORT}/r0/{FAN_OUT}"
NOBODY = 65534


def run_json(*arguments: str) -> tuple[int, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def move_out(root: Path, place: str, outside: Path) -> Path:
    """The directory goes elsewhere and a link to it comes in its place."""
    there = outside / "moved"
    (root / place).rename(there)
    (root / place).symlink_to(there)
    return there


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    fill(root, 1, 2)
    bad = chunk_path(root, 3)
    bad.write_bytes(bytes(CHUNK_BYTES))  # which a load would remove
    for path in root.rglob("*.kv"):
        os.utime(path, (1_600_000_000, 1_600_000_000))  # which a load would renew
    return root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    return tmp_path / "outside"


@pytest.mark.parametrize("io_engine", ["auto", "threads"])
@pytest.mark.parametrize("place", [*PLACES.values(), FAN], ids=[*PLACES, "fan_out"])
def test_a_link_in_a_directorys_place_under_a_running_engine_is_not_followed(
    root: Path, outside: Path, place: str, io_engine: str
) -> None:
    with engine(root, io_engine) as running:
        move_out(root, place, outside)
        before = snapshot(outside)
        assert running.load(1, 3) == [False, False]
        assert running.store(4) != ""
        running.engine.touch([(key(2), 0)])
        time.sleep(0.05)
        stats = running.stats()
        assert stats["loads_failed"] == 2
        assert (stats["chunks_bad"], stats["chunks_missing"]) == (0, 0)
        assert stats["stores_failed"] == 1
        assert snapshot(outside) == before


def test_a_linked_directory_takes_the_root_out_of_service_with_the_reason(
    root: Path, outside: Path
) -> None:
    with engine(root) as running:
        move_out(root, PLACES["rank"], outside)
        for _ in range(4):
            assert running.load(1) == [False]
        assert running.stats()["loads_out_of_service"] == 1
        assert "symbolic links" in running.engine.info()["roots_out"]


@pytest.mark.parametrize("place", [*PLACES.values(), f"v1/{SHORT}/r0/tmp"], ids=[*PLACES, "tmp"])
def test_an_engine_does_not_start_over_a_link_and_says_which(
    root: Path, outside: Path, place: str
) -> None:
    move_out(root, place, outside)
    before = snapshot(outside)
    with pytest.raises(_C.ConfigError, match=r"is a symbolic link, and none is followed"):
        SmallEngine(root)
    assert snapshot(outside) == before


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_lookups_and_scans_do_not_look_behind_a_link(root: Path, outside: Path, place: str) -> None:
    move_out(root, place, outside)
    assert _C.Directory(root=str(root), namespace=NAMESPACE, ranks=1).lookup([key(1)]) == 0
    for command in (("stats",), ("verify", "--delete"), ("gc", "--older", "0s")):
        code, found = run_json(command[0], str(root), *command[1:])
        assert (code, found["complete"]) == (1, False)
    assert len(list(outside.rglob("*.kv"))) == 3


def test_the_root_itself_may_be_a_link_and_lie_behind_one(root: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "kv").symlink_to(tmp_path / "here" / "root")
    for io_engine in ("auto", "threads"):
        with engine(tmp_path / "kv", io_engine) as one:
            assert one.load(1, 2) == [True, True]
            assert one.store(5 if io_engine == "auto" else 6) == ""
    assert chunk_path(root, 5).is_file()


@pytest.mark.parametrize("place", [*PLACES.values(), FAN], ids=[*PLACES, "fan_out"])
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "fifo"])
def test_a_file_in_a_directorys_place_is_no_chunk_and_is_left_alone(
    root: Path, place: str, make: Callable[[Path], object]
) -> None:
    with engine(root) as running:
        (root / place).rename(root / "aside")
        make(root / place)
        before = (root / place).lstat()
        assert running.load(1) == [False]
        assert running.store(4) != ""
        assert running.stats()["stores_failed"] == 1
    assert (root / place).lstat() == before
    assert run_json("stats", str(root))[0] == 0


def as_nobody(task: str, root: Path) -> Any:
    """What a task of ``another_user.py`` returns."""
    script = Path(__file__).parent / "another_user.py"
    command = [sys.executable, str(script), str(NOBODY), task, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def shared_by_owners() -> Iterator[Path]:
    """A tree of nobody's with chunks of root's: 1 may be read, 2 to 5 not; 6 is nobody's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    folder = tempfile.TemporaryDirectory()  # pytest's are its own user's alone
    Path(folder.name).chmod(0o711)
    root = Path(folder.name) / "root"
    fill(root, 1, 2, 3, 4, 5, 6)
    for path in (root, *root.rglob("*")):
        if path.is_dir() or path == chunk_path(root, 6):
            os.chown(path, NOBODY, NOBODY)
    chunk_path(root, 1).chmod(0o644)
    yield root
    folder.cleanup()


def test_files_of_another_owner_are_read_if_they_may_be_and_never_removed(
    shared_by_owners: Path,
) -> None:
    root = shared_by_owners
    for number in range(1, 7):
        os.utime(chunk_path(root, number), (1_600_000_000, 1_600_000_000))

    said = as_nobody("engine", root)
    assert said["came"] == [False] * 4
    # Whose files they are says nothing of the directory.
    assert said["mixed"] == [True, False, True]
    assert said["loads_out_of_service"] == 0
    assert (said["loads_failed"], said["chunks_bad"]) == (5, 0)
    assert said["stores_already_present"] == 1
    assert said["touches_failed"] > 0  # of root's
    assert said["chunks_touched"] == 1  # of its own
    assert len(list(root.rglob("*.kv"))) == 6


def test_tools_say_which_files_of_another_owner_they_could_not_read(
    shared_by_owners: Path,
) -> None:
    root = shared_by_owners

    (stats_code, stats), (code, found), (delete_code, deleted) = as_nobody("tools", root)
    assert (stats_code, stats["namespaces"][0]["chunks"]) == (0, 6)
    assert (code, found["sound"], len(found["unreadable"])) == (1, 2, 4)
    assert (delete_code, deleted["sound"], deleted["bad"]) == (1, 2, [])
    assert len(list(root.rglob("*.kv"))) == 6
