"""A tree with everything hostile in it at once: what the evictor and the tools make of it."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lmkv import tree_cleanup
from lmkv.cli import app

sys.path.insert(0, str(Path(__file__).parent))
from hostile import (
    CHUNK_BYTES,
    FAN_OUT,
    NAMESPACE,
    NO_FILES,
    WRONG_BYTES,
    WRONG_SIZES,
    Place,
    chunk_path,
    engine,
    fill,
    make_directory_in_use,
    make_outside,
    snapshot,
)

pytestmark = pytest.mark.timeout(90)
GOOD = range(1, 5)
NOT_FILES = [*NO_FILES.values(), make_directory_in_use]
BAD_FILES = [*WRONG_SIZES.values(), *WRONG_BYTES.values()]
HEX = f"{FAN_OUT}{1:061x}"
# Beside chunks; in the names of directories, of namespaces and of temporary files.
STRANGE = [
    f"{HEX.upper()}.kv", f"{HEX}0.kv", f"{HEX[:-1]}.kv", f"{HEX}.KV", f"{HEX}.kv ", f".{HEX}.kv",
    f"{HEX}.kv\n", f"{HEX[:-1]}\u0431.kv", f"ab0{HEX[3:]}.kv", HEX, "x" * 255, "-rf", "a\nb.kv",
    f"{HEX}.kv.tmp", "host-x-0123456789abcdef", "host--0123456789abcdef", "..kv", "\u202e.kv",
]  # fmt: skip
STRANGE_BYTES = [b"\xff\xfe.kv", HEX[:-2].encode() + b"\xc3\x28.kv"]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def run_json(*arguments: str) -> tuple[int, Any]:
    code, text = run(*arguments, "--json")
    return code, json.loads(text)


class Zoo:
    """Four good chunks, every hostile thing in a chunk's place, strange names at every level."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside = folder / "root", folder / "outside"
        make_outside(self.outside)
        fill(self.root, *GOOD)
        good = chunk_path(self.root, 1).read_bytes()
        self.bad: list[Path] = []
        self.not_files: list[Path] = []
        for number, put in enumerate([*NOT_FILES, *BAD_FILES], 100):
            path = chunk_path(self.root, number)
            put(Place(path, good, self.outside))
            (self.bad if put in BAD_FILES else self.not_files).append(path)
        fan_out = chunk_path(self.root, 1).parent
        rank = fan_out.parent
        self.strange: list[bytes] = []
        for directory in (fan_out, rank, rank / "tmp", rank.parent, rank.parents[1], self.root):
            for name in [*map(os.fsencode, STRANGE), *STRANGE_BYTES]:
                path = os.fsencode(directory) + b"/" + name
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
                os.truncate(path, 3)
                os.utime(path, (1, 1))
                self.strange.append(path)
        for name in ("r00", "r-1", "r4294967296", "R0", "r0 "):
            (rank.parent / name / FAN_OUT).mkdir(parents=True)
            chunk = rank.parent / name / FAN_OUT / f"{HEX}.kv"
            chunk.write_bytes(good)
            self.strange.append(os.fsencode(chunk))
        for number in GOOD:
            os.utime(chunk_path(self.root, number), (number, number))
        self.before = snapshot(self.outside)

    def good(self) -> list[int]:
        return [number for number in GOOD if chunk_path(self.root, number).is_file()]

    def check_what_is_not_ours(self) -> None:
        assert all(os.path.lexists(path) for path in (*self.not_files, *self.strange))
        assert (self.not_files[-1] / "users own").is_file()
        assert snapshot(self.outside) == self.before


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_cleanup, "SPARED_SECONDS", 0.0)


def test_tools_count_files_of_ours_and_nothing_else(zoo: Zoo) -> None:
    code, stats = run_json("stats", str(zoo.root))
    assert (code, stats["complete"]) == (0, True)
    (one,) = stats["namespaces"]
    assert one["name"] == NAMESPACE.hex()[:16]
    assert one["chunks"] == len(GOOD) + len(BAD_FILES)
    assert one["ranks"] == [0]
    assert one["bytes"] < 1 << 20  # not the TiB that a sparse file says it has
    assert (stats["being_written"], stats["abandoned"]) == (0, 0)
    code, text = run("ls", str(zoo.root), "--json")
    assert (code, len(text.splitlines())) == (0, len(GOOD) + len(BAD_FILES))
    assert run("stats", str(zoo.root))[0] == run("ls", str(zoo.root))[0] == 0
    assert run("doctor", str(zoo.root))[0] == 0
    zoo.check_what_is_not_ours()


def test_verify_names_every_bad_file_and_removes_those_alone(zoo: Zoo) -> None:
    code, found = run_json("verify", str(zoo.root))
    names = {path.stem for path in zoo.bad}
    assert (code, found["sound"], found["unreadable"]) == (1, len(GOOD), [])
    assert {one["key"] for one in found["bad"]} == names
    code, found = run_json("verify", str(zoo.root), "--delete")
    assert (code, {one["key"] for one in found["bad"] if one["removed"]}) == (0, names)
    assert not any(os.path.lexists(path) for path in zoo.bad)
    assert zoo.good() == list(GOOD)
    assert run_json("verify", str(zoo.root))[0] == 0
    zoo.check_what_is_not_ours()


def test_gc_removes_files_of_ours_and_nothing_else(zoo: Zoo, settled: None) -> None:
    limit = ("--to", "2GiB")  # far more than there is, but for what a sparse file says
    assert run_json("gc", str(zoo.root), *limit)[1]["chunks"] == 0
    code, found = run_json("gc", str(zoo.root), "--older", "0s")
    assert (code, found["failed"]) == (0, [])
    assert found["chunks"] == len(GOOD) + len(BAD_FILES)
    assert zoo.good() == []
    zoo.check_what_is_not_ours()


def test_the_evictor_removes_files_of_ours_and_nothing_else(zoo: Zoo) -> None:
    with engine(zoo.root, capacity=1 << 30) as one:  # the sparse file has a TiB, it says
        deadline = time.monotonic() + 20
        while not one.stats()["housekeeping_passes"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert one.store(50) == ""
        assert one.stats()["chunks_evicted"] == 0
    time.sleep(5.1)  # what was changed a moment ago is spared
    with engine(zoo.root, capacity=2 * CHUNK_BYTES) as one:
        deadline = time.monotonic() + 30
        while one.stats()["store_bytes_used"] > 2 * CHUNK_BYTES or zoo.good():
            assert time.monotonic() < deadline, one.stats()
            time.sleep(0.05)
        stats = one.stats()
        ours = [*zoo.bad, chunk_path(zoo.root, 50)]
        left = sum(os.path.lexists(path) for path in ours)
        assert stats["chunks_evicted"] == len(GOOD) + len(ours) - left
        assert stats["housekeeping_failures"] == stats["temporaries_removed"] == 0
    zoo.check_what_is_not_ours()
