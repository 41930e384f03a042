"""Several processes over one directory: writers of one chunk, readers beside an evictor, engines
that are set differently, engines of several users.
"""

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from host import CHUNK_BYTES, content, key
from hosts import RemoteHost, hosts

Mount = Callable[..., Path]

WRITERS = 4
ROUNDS = 150


def chunk_files(root: Path) -> list[Path]:
    return sorted(root.glob("v1/*/r0/*/*.kv"))


def unfinished(root: Path) -> list[Path]:
    return [file for file in root.glob("v1/*/r0/*/*") if file.suffix != ".kv"]


@pytest.mark.parametrize("shared", ["no", "yes"])
def test_writers_of_one_chunk_leave_one_whole_file(tmp_path: Path, shared: str) -> None:
    """Each would write bytes of its own, so that a mixture would be seen."""
    names = [str(writer) for writer in range(WRITERS)]
    writers = [RemoteHost(tmp_path, shared=shared) for _ in names]
    reader = RemoteHost(tmp_path, shared=shared)
    won: set[str] = set()
    with hosts(*writers, reader):
        assert {writer.ask("info")["shared"] for writer in writers} == {shared}
        for number in range(ROUNDS):
            for name, writer in zip(names, writers, strict=True):
                writer.begin("store", names=[f"{number}"], salt=name)
            for writer in writers:
                assert writer.answer() == [""]
            (file,) = tmp_path.glob(f"v1/*/r0/*/{key(str(number)).hex()}.kv")
            stored = file.read_bytes()
            assert len(stored) == CHUNK_BYTES
            (winner,) = [n for n in names if stored[4096:] == content(f"{number}{n}")]
            assert reader.ask("load", names=[f"{number}"], salt=winner) == ["right"]
            won.add(winner)
            file.unlink()
        counts = [writer.ask("stats") for writer in writers]
    written = sum(count["chunks_stored"] for count in counts)
    present = sum(count["stores_already_present"] for count in counts)
    assert written + present == WRITERS * ROUNDS
    assert written > ROUNDS, "no two ever wrote at once: nothing was tested"
    assert len(won) > 1
    assert sum(count["stores_failed"] for count in counts) == 0
    assert unfinished(tmp_path) == []


def test_readers_beside_an_evictor_find_the_right_bytes_or_none(tmp_path: Path) -> None:
    count, seconds = 30, 3.0
    writer, evictor = RemoteHost(tmp_path), RemoteHost(tmp_path)
    # Two slabs: little is served from memory.
    readers = [
        RemoteHost(tmp_path, host_memory=2 * CHUNK_BYTES, io_engine=engine)
        for engine in ("auto", "threads")
    ]
    with hosts(writer, evictor, *readers):
        writer.begin("store_for", count=count, seconds=seconds)
        evictor.begin("evict_for", seconds=seconds)
        for reader in readers:
            reader.begin("load_any", count=count, seconds=seconds)
        assert writer.answer() == []
        assert evictor.answer() > 10
        found = [reader.answer() for reader in readers]
        totals = [reader.ask("stats") for reader in readers]
    for one, total in zip(found, totals, strict=True):
        assert one.keys() == {"right", "no such chunk"}
        assert min(one.values()) > 5, one
        assert total["chunks_missing"] == total["loads_failed"] == one["no such chunk"]
        assert total["chunks_bad"] == total["loads_out_of_service"] == 0


def test_engines_that_are_set_differently_share_a_root(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(24)]
    others = [f"other{number}" for number in range(24)]
    one = RemoteHost(tmp_path, io_engine="auto", direct_io="auto", capacity=1 << 30)
    two = RemoteHost(tmp_path, io_engine="threads", direct_io="off", request_bytes=4096)
    # Chunks of half the size, and the smallest limit, which all that is there is held to.
    half = RemoteHost(tmp_path, model="n", blocks_per_chunk=8, capacity=20 * CHUNK_BYTES)
    with hosts(one, two, half):
        for limited in (one, half):
            limited.ask("wait_for", counter="housekeeping_passes", at_least=1)
        assert one.ask("store", names=names[:8]) == [""] * 8
        assert two.ask("present", names=names[:9]) == [True] * 8 + [False]
        assert two.ask("load", names=names[:8]) == ["right"] * 8
        assert two.ask("store", names=others[:4]) == [""] * 4
        assert one.ask("load", names=others[:4]) == ["right"] * 4
        assert half.ask("present", names=names[:8] + others[:4]) == [False] * 12
        assert half.ask("store", names=names[:2]) == [""] * 2
        assert one.ask("load", names=names[:2]) == ["right"] * 2, "another namespace's are others"
        assert len({folder.name for folder in tmp_path.glob("v1/*/meta.json")}) == 1
        assert len(list(tmp_path.glob("v1/*"))) == 2
        one.ask("store", names=names[8:])
        # It evicts the others' as well, once they are no longer spared.
        half.begin("wait_for", counter="chunks_evicted", at_least=1)
        assert half.answer() >= 1
        deadline = time.monotonic() + 20
        while sum(file.stat().st_size for file in chunk_files(tmp_path)) > 20 * CHUNK_BYTES:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert set(one.ask("load", names=names)) <= {"right"} | {
            answer for answer in one.ask("load", names=names) if answer.startswith("no such chunk")
        }
        for host in (one, two, half):
            stats = host.ask("stats")
            assert stats["chunks_bad"] == stats["stores_failed"] == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="lmkv-group-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


ANN, BEN, EVE = ("41001", "41000"), ("41002", "41000"), ("41003", "41009")  # user, group


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run processes as other users")
def test_a_group_shares_what_its_members_store_whatever_their_umasks(open_folder: Path) -> None:
    root = open_folder / "kv"
    root.mkdir()
    os.chown(root, 0, int(ANN[1]))
    root.chmod(0o770)  # without setgid, which is easily forgotten
    names = [f"{number}" for number in range(12)]
    ann = RemoteHost(root, user=(*ANN, "0077"), file_mode="group")
    with hosts(ann):
        assert ann.ask("who")[2:] == [41001, 41000]
        assert ann.ask("store", names=names) == [""] * 12
        old = time.time() - 3600
        for file in chunk_files(root):
            os.utime(file, (old, old))
        ben = RemoteHost(root, user=(*BEN, "0022"), file_mode="group")
        with hosts(ben):
            assert ben.ask("present", names=names) == [True] * 12
            assert ben.ask("load", names=names[:3]) == ["right"] * 3
            # Ann's files, whose times Ben may only set to now.
            ben.ask("wait_for", counter="chunks_touched", at_least=3)
            assert ben.ask("stats")["touches_failed"] == 0
            renewed = [file for file in chunk_files(root) if file.stat().st_mtime > old + 3000]
            assert {file.stem for file in renewed} == {key(name).hex() for name in names[:3]}
            assert ben.ask("store", names=["b0", "b1"]) == [""] * 2
            assert ann.ask("load", names=["b0", "b1"]) == ["right"] * 2
        files = [path for path in root.rglob("*") if path.is_file()]
        folders = [path for path in root.rglob("*") if path.is_dir()]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o660}
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o2770}
        assert {path.stat().st_gid for path in files + folders} == {41000}
        assert {file.stat().st_uid for file in files} == {41001, 41002}
        # Ben's engine evicts Ann's chunks, the oldest first.
        small = RemoteHost(root, user=(*BEN, "0022"), file_mode="group", capacity=8 * CHUNK_BYTES)
        with hosts(small):
            assert small.ask("wait_for", counter="chunks_evicted", at_least=6) >= 6
            assert small.ask("stats")["housekeeping_failures"] == 0
        left = {file.stem for file in chunk_files(root)}
        assert left >= {key(name).hex() for name in [*names[:3], "b0", "b1"]}
        answers = ann.ask("load", names=names)
        assert {answer.split(":")[0] for answer in answers} <= {"right", "no such chunk"}
        assert answers[:3] == ["right"] * 3
    eve = RemoteHost(root, user=EVE, file_mode="group")
    with pytest.raises(AssertionError, match="Permission denied"), hosts(eve):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run processes as other users")
def test_without_a_group_others_are_kept_out(open_folder: Path) -> None:
    root = open_folder / "kv"
    root.mkdir()
    root.chmod(0o777)
    with hosts(RemoteHost(root, user=(*ANN, "0000"))) as (ann,):
        assert ann.ask("store", names=["a"]) == [""]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    ben = RemoteHost(root, user=BEN)
    with pytest.raises(AssertionError, match="Permission denied"), hosts(ben):
        pass


def test_where_times_are_whole_seconds_a_use_changes_a_file_once_and_eviction_works(
    loop_ext4: Mount,
) -> None:
    root = loop_ext4(64 << 20, "-I", "128")  # inodes without room for more than seconds
    names = [f"{number}" for number in range(30)]
    with hosts(RemoteHost(root), RemoteHost(root)) as (one, two):
        one.ask("store", names=names)
        file = chunk_files(root)[0]
        assert file.stat().st_mtime_ns % 1_000_000_000 == 0
        for file in chunk_files(root):
            os.utime(file, (1_000_000_000, 1_000_000_000))
        begin = time.monotonic()
        for _ in range(20):
            assert two.ask("load", names=names[:1]) == ["right"]
        ticks = (time.monotonic() - begin) / 2 + 2
        assert 1 <= two.ask("wait_for", counter="chunks_touched", at_least=1) <= ticks
        with hosts(RemoteHost(root, capacity=20 * CHUNK_BYTES)) as (small,):
            assert small.ask("wait_for", counter="chunks_evicted", at_least=10) >= 10
        assert two.ask("load", names=names[:1]) == ["right"]
        assert two.ask("present", names=names).count(True) < 21
