"""kill -9, hundreds of times and at every stage: nothing bad is left, and nothing for ever."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import wait_for
from watched import CHUNK_BYTES, WatchedCore, chunk_files, temporaries

from lmkv import tree

HERE = Path(__file__).parent
ROUNDS, KILLS, AT_ONCE = 4, 56, 4
LONGEST_LIFE = 0.06  # seconds: starting takes a tenth of it, a store some milliseconds

# docs/file-format.md: beside the chunks, and what start-up tries, in tmp/.
LEFT_NAMES = re.compile(r"[A-Za-z0-9._-]+-\d+-[0-9a-f]{16}|\.probe-\d+-[A-Za-z0-9]{6}")


class Writers:
    """Writing processes, forked on demand."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, HERE / "writers.py"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._alive: set[int] = set()

    def begin(self, root: Path, seed: int, **order: object) -> int:
        assert self._parent.stdin
        print(json.dumps({"root": str(root), "seed": seed, **order}), file=self._parent.stdin)
        self._parent.stdin.flush()
        pid = int(self.line())
        self._alive.add(pid)
        return pid

    def line(self) -> str:
        assert self._parent.stdout
        return self._parent.stdout.readline().strip()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._alive.discard(pid)

        def is_gone() -> bool:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_for(is_gone)

    def end(self) -> None:
        for pid in list(self._alive):
            self.kill(pid)
        assert self._parent.stdin
        self._parent.stdin.close()
        self._parent.wait(timeout=20)


@pytest.fixture
def writers() -> Iterator[Writers]:
    writers = Writers()
    yield writers
    writers.end()


def make_old(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path, (time.time() - 7200, time.time() - 7200))


def test_after_hundreds_of_kills_every_chunk_is_whole_and_the_rest_is_swept(
    tmp_path: Path, writers: Writers
) -> None:
    draw = random.Random(20261128)
    killed = sound = left_in_all = 0
    for number in range(ROUNDS):
        alive: list[tuple[float, int]] = []
        for kill in range(KILLS):
            pid = writers.begin(tmp_path, seed=number * KILLS + kill)
            alive.append((time.monotonic() + draw.uniform(0, LONGEST_LIFE), pid))
            if len(alive) == AT_ONCE or kill >= KILLS - AT_ONCE:
                due, victim = min(alive)
                alive.remove((due, victim))
                time.sleep(max(0.0, due - time.monotonic()))
                writers.kill(victim)
                killed += 1
        for _, pid in alive:
            writers.kill(pid)
            killed += 1

        found = tree.verify(str(tmp_path))
        assert (found.bad, found.unreadable, found.complete) == ([], [], True)
        files, left = chunk_files(tmp_path), temporaries(tmp_path)
        assert found.sound == len(files)
        assert {file.stat().st_size for file in files} <= {CHUNK_BYTES}
        assert all(LEFT_NAMES.fullmatch(path.name) for path in left), left
        sound += found.sound
        left_in_all += len(left)

        make_old(left)
        if number % 2:
            swept = tree.verify(str(tmp_path), delete=True)
            assert swept.clean
        else:
            core = WatchedCore(tmp_path)
            core.wait_for_scan()
            assert core.stat("temporaries_removed") == len(left)
            core.close()
        assert temporaries(tmp_path) == []
        for file in files:  # new ones are to be written
            file.unlink()
    print(f"{killed} killed: {sound} chunks are sound, {left_in_all} files were left half written")
    assert killed == ROUNDS * KILLS >= 200
    assert sound > killed
    assert left_in_all > killed / 10  # or the kills came at no time that matters


STAGES = ["mkdir", "open", "allocate", "write", "touch", "close", "rename"]


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_a_kill_at_each_stage_of_a_store_leaves_a_file_of_a_dead_writer_at_most(
    tmp_path: Path, writers: Writers, engine: str
) -> None:
    for seed, stage in enumerate(STAGES):
        root = tmp_path / stage
        pid = writers.begin(root, seed, faults=f"{stage}.hang:0.2", io_engine=engine)
        assert writers.line() == "hangs"
        writers.kill(pid)
        found = tree.verify(str(root))
        assert (found.bad, found.unreadable) == ([], [])
        left = temporaries(root)
        assert all(LEFT_NAMES.fullmatch(path.name) for path in left), left
        if stage not in {"mkdir", "open"}:
            assert left, stage
        make_old(left)
        core = WatchedCore(root)
        core.wait_for_scan()
        assert core.stat("temporaries_removed") == len(left)
        assert core.store("after") == [""]
        core.close()
        assert temporaries(root) == []


# An evictor's lease is taken over after half a minute: the other tests run meanwhile.


def kill_an_evictor(root: Path, writers: Writers) -> Path:
    """Leaves the lease of one that was killed while it evicted."""
    lease, chunks = root / "v1" / "evictor.lease", 120
    core = WatchedCore(root)
    assert core.store(*[f"chunk{n}" for n in range(chunks)]) == [""] * chunks
    core.close()
    time.sleep(5.2)  # until then all of them are spared
    for limit in range(chunks - 10, 40, -10):
        pid = writers.begin(root, seed=limit, capacity=limit * CHUNK_BYTES)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if lease.exists():
                os.kill(pid, signal.SIGSTOP)
                if lease.exists():
                    writers.kill(pid)
                    return lease
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.0002)
        writers.kill(pid)
    raise AssertionError("no evictor was caught")


@pytest.fixture(scope="module", autouse=True)
def heir(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Future[tuple[WatchedCore, float]]"]:
    """An engine over a root whose evictor was killed; and how long it took until it evicted."""
    root = tmp_path_factory.mktemp("evictor")
    writers = Writers()

    def inherit() -> tuple[WatchedCore, float]:
        lease = kill_an_evictor(root, writers)
        begin = time.monotonic()
        core = WatchedCore(root, capacity=20 * CHUNK_BYTES)
        wait_for(lambda: core.stat("chunks_evicted") > 0, 60)
        took = time.monotonic() - begin
        wait_for(lambda: not lease.exists(), 20)
        return core, took

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(inherit)
        yield future
        future.exception()
    writers.end()


def test_the_lease_of_an_evictor_that_was_killed_is_taken_over(
    heir: "Future[tuple[WatchedCore, float]]",
) -> None:
    core, took = heir.result(90)
    assert 25 < took < 45
    core.wait_to_store("after")
    # A file that is written during a scan may be counted twice until the next.
    assert core.stat("store_bytes_used") <= 21 * CHUNK_BYTES
    core.close()
