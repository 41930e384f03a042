"""``lmkv stats``, ``ls``, ``verify`` and ``gc`` over directories that the core has filled."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkv import tree_cleanup
from lmkv._C import Removal, TreeFile
from lmkv.cli import app
from lmkv.namespace import Namespace

sys.path.insert(0, str(Path(__file__).parent))
from prompts import CHUNK_BYTES, PER_CHUNK, TOKENS, Core, key

NAMESPACE = bytes(32).hex()[:16]
DAY = 86400.0


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout


def run_json(*arguments: str) -> tuple[int, dict]:
    code, out = run(*arguments, "--json")
    return code, json.loads(out)


def files(root: Path) -> list[Path]:
    return sorted(root.glob("v1/*/r0/*/*.kv"))


def file_of(root: Path, name: str) -> Path:
    return next(root.glob(f"v1/*/r0/*/{key(name).hex()}.kv"))


def age(path: Path, seconds: float) -> None:
    """As if it had last been used so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def leave_half_written(root: Path, seconds: float) -> Path:
    file = files(root)[0].parent / f"host-77-{int(seconds):016x}"
    file.write_bytes(bytes(8192))
    age(file, seconds)
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two prompts of four chunks each."""
    core = Core(str(tmp_path), free_space_floor=0)
    core.store("a", 4)
    core.store("b", 4)
    core.engine.close()
    return tmp_path


@pytest.fixture(autouse=True)
def _no_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that engines here may have."""
    monkeypatch.setenv("LMKV_ARENA_DIRECTORY", str(tmp_path))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed a moment ago may go, too."""
    monkeypatch.setattr(tree_cleanup, "SPARED_SECONDS", 0.0)


def test_stats_count_chunks_tokens_and_bytes(root: Path) -> None:
    leave_half_written(root, 0)
    leave_half_written(root, 7200)
    age(file_of(root, "a/3"), 10 * DAY)
    code, found = run_json("stats", str(root))
    assert code == 0
    (one,) = found["namespaces"]
    assert one["name"] == NAMESPACE
    assert one["chunks"] == 8
    assert one["tokens"] == 8 * PER_CHUNK * TOKENS
    assert 8 * CHUNK_BYTES <= one["bytes"] < 8 * CHUNK_BYTES + (1 << 20)
    assert one["ranks"] == [0]
    assert time.time() - one["oldest"] == pytest.approx(10 * DAY, abs=60)
    assert time.time() - one["newest"] < 60
    assert (found["being_written"], found["abandoned"]) == (1, 1)
    assert found["bytes"] == one["bytes"] + 2 * 8192
    assert found["complete"] is True


def test_stats_say_what_a_namespace_is_made_of(tmp_path: Path) -> None:
    namespace = Namespace({"dtype": "bfloat16", "model": "abc"})
    namespace.write_meta(str(tmp_path), {"model": "org/model"})
    folder = namespace.directory(str(tmp_path)) / "r0" / "abc"
    folder.mkdir(parents=True)
    (folder / ("abc" + "0" * 61 + ".kv")).write_bytes(bytes(4096))
    _, found = run_json("stats", str(tmp_path))
    assert found["namespaces"][0]["model"] == "org/model"
    assert found["namespaces"][0]["tokens"] == 0  # it is no sound chunk
    code, out = run("stats", str(tmp_path))
    assert code == 0
    assert "bfloat16" in out
    (namespace.directory(str(tmp_path)) / "meta.json").write_text("[]")
    assert run_json("stats", str(tmp_path))[1]["namespaces"][0]["model"] == ""


def test_ls_lists_each_chunk_and_nothing_else(root: Path) -> None:
    leave_half_written(root, 0)
    (files(root)[0].parent / "notes.txt").touch()
    code, out = run("ls", str(root), "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["key"] for row in rows} == {file.stem for file in files(root)}
    assert len(run("ls", str(root))[1].splitlines()) == 8
    assert len(run("ls", str(root), "--namespace", NAMESPACE)[1].splitlines()) == 8


def test_verify_finds_every_bad_chunk_and_removes_it_only_if_told_to(root: Path) -> None:
    code, found = run_json("verify", str(root))
    assert (code, found["sound"], found["bad"]) == (0, 8, [])
    assert found["bytes"] == 8 * CHUNK_BYTES
    flipped, short = file_of(root, "a/1"), file_of(root, "b/2")
    data = bytearray(flipped.read_bytes())
    data[CHUNK_BYTES // 2] ^= 1
    flipped.write_bytes(data)
    os.truncate(short, CHUNK_BYTES // 2)
    left = leave_half_written(root, 7200)
    code, found = run_json("verify", str(root))
    assert (code, found["sound"], found["abandoned"]) == (1, 6, 1)
    assert {one["key"] for one in found["bad"]} == {flipped.stem, short.stem}
    assert {one["why"] for one in found["bad"]} == {
        "block checksum mismatch",
        "the file is not as long as its header says",
    }
    code, found = run_json("verify", str(root), "--delete")
    assert (code, found["abandoned"]) == (0, 0)
    assert all(one["removed"] for one in found["bad"])
    assert not flipped.exists()
    assert not short.exists()
    assert not left.exists()
    assert run_json("verify", str(root))[1]["sound"] == len(files(root)) == 6


def test_verify_beside_a_writer_and_an_evictor_finds_nothing_bad(tmp_path: Path) -> None:
    core = Core(str(tmp_path), capacity=12 * CHUNK_BYTES, free_space_floor=0)
    core.store("start", 4)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            core.store(f"{number}", 4)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + 60
        while core.engine.stats()["chunks_evicted"] < 8:
            assert time.monotonic() < deadline
            code, found = run_json("verify", str(tmp_path))
            assert (code, found["bad"], found["unreadable"]) == (0, [], [])
    finally:
        stop.set()
        writer.join()
    assert core.engine.stats()["chunks_stored"] > 12
    core.engine.close()


def test_gc_to_a_size_removes_the_longest_unused(root: Path, settled: None) -> None:
    for index in range(4):
        age(file_of(root, f"a/{index}"), 3600 * (2 + index))
    code, would = run_json("gc", str(root), "--to", str(6 * CHUNK_BYTES + (1 << 19)), "--dry-run")
    assert (code, would["chunks"], len(files(root))) == (0, 2, 8)
    code, removal = run_json("gc", str(root), "--to", str(6 * CHUNK_BYTES + (1 << 19)))
    assert (code, removal["chunks"]) == (0, 2)
    assert removal["bytes"] == would["bytes"]
    gone = {key(f"a/{index}").hex() for index in range(4)} - {file.stem for file in files(root)}
    assert gone == {key("a/2").hex(), key("a/3").hex()}
    assert removal["left_bytes"] <= 6 * CHUNK_BYTES + (1 << 19)


def test_gc_of_what_is_old(root: Path, settled: None) -> None:
    age(file_of(root, "b/0"), 8 * DAY)
    left, young = leave_half_written(root, 7200), leave_half_written(root, 60)
    code, removal = run_json("gc", str(root), "--older", "7d")
    assert (code, removal["chunks"], removal["abandoned"]) == (0, 1, 1)
    assert len(files(root)) == 7
    assert young.exists()
    assert not left.exists()


def test_gc_of_a_namespace_leaves_the_others(root: Path, settled: None) -> None:
    other = root / "v1" / ("f" * 16) / "r0" / "abc"
    other.mkdir(parents=True)
    kept = other / ("abc" + "0" * 61 + ".kv")
    kept.write_bytes(bytes(4096))
    code, _ = run_json("gc", str(root), "--namespace", NAMESPACE)
    assert code == 0
    assert files(root) == [kept]


def test_gc_in_several_scans_removes_as_much(
    root: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_cleanup, "CANDIDATES", 3)
    for index in range(4):
        age(file_of(root, f"b/{index}"), 2 * DAY + index)
    limit = str(4 * CHUNK_BYTES + (1 << 19))
    code, would = run_json("gc", str(root), "--to", limit, "--dry-run")
    assert (code, would["chunks"], len(files(root))) == (0, 4, 8)
    code, removal = run_json("gc", str(root), "--to", limit)
    assert (code, removal["chunks"], len(files(root))) == (0, 4, 4)
    assert {file.stem for file in files(root)} == {key(f"a/{index}").hex() for index in range(4)}
    assert removal["left_bytes"] == would["left_bytes"]


def test_a_dry_run_counts_what_is_old_and_above_the_size_once(root: Path, settled: None) -> None:
    for index in range(3):
        age(file_of(root, f"a/{index}"), 2 * DAY)
    arguments = ("gc", str(root), "--older", "1d", "--to", str(3 * CHUNK_BYTES + (1 << 19)))
    code, would = run_json(*arguments, "--dry-run")
    assert (code, would["chunks"], len(files(root))) == (0, 5, 8)
    code, removal = run_json(*arguments)
    assert (code, removal["chunks"], len(files(root))) == (0, 5, 3)
    assert removal == would | {"dry_run": False}


def test_two_gcs_at_once_remove_no_more_than_one(root: Path, settled: None) -> None:
    """What another has removed counts as gone, and not as something to make up for."""
    limit = str(4 * CHUNK_BYTES + (1 << 19))
    command = (
        "from lmkv import tree_cleanup; tree_cleanup.SPARED_SECONDS = 0.0\n"
        "from lmkv.cli import app; app()"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", command, "gc", str(root), "--to", limit])
        for _ in range(2)
    ]
    assert [one.wait() for one in both] == [0, 0]
    assert len(files(root)) == 4


def test_what_goes_while_gc_is_at_work_counts_as_gone(
    root: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = tree_cleanup.remove_chunk

    def another_is_faster(where: str, file: TreeFile) -> Removal:
        next(root.glob(f"v1/*/r0/*/{file.key.hex()}.kv")).unlink()
        return remove(where, file)

    monkeypatch.setattr(tree_cleanup, "remove_chunk", another_is_faster)
    code, removal = run_json("gc", str(root), "--to", str(6 * CHUNK_BYTES + (1 << 19)))
    assert (code, removal["chunks"], len(files(root))) == (0, 0, 6)


def test_a_file_that_cannot_be_removed_is_named_and_the_others_go(
    root: Path, settled: None
) -> None:
    stuck = file_of(root, "a/1")
    if subprocess.run(["chattr", "+i", stuck], check=False, capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        code, removal = run_json("gc", str(root), "--older", "0s", "--to", "1KiB")
        assert (code, removal["chunks"]) == (1, 7)
        assert len(removal["failed"]) == 1
        assert stuck.name in removal["failed"][0]
        assert files(root) == [stuck]
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)


def test_a_directory_that_cannot_be_read_is_said(root: Path) -> None:
    folder = files(root)[0].parent
    folder.rename(root / "elsewhere")
    folder.symlink_to(root / "elsewhere")
    for command in (("stats",), ("verify",), ("gc", "--older", "1w")):
        code, found = run_json(command[0], str(root), *command[1:])
        assert (code, found["complete"]) == (1, False), command
    assert run("ls", str(root))[0] == 1


def test_what_a_namespace_says_of_itself_is_text(root: Path) -> None:
    meta = root / "v1" / NAMESPACE / "meta.json"
    meta.write_text(json.dumps({"facts": {"dtype": "[b]x"}, "about": {"model": "m[/]"}}))
    code, out = run("stats", str(root))
    assert code == 0
    assert "m[/]" in out
    meta.write_text("[" * 100_000)
    assert run("stats", str(root))[0] == run("doctor", str(root))[0] == 0
    meta.unlink()
    os.mkfifo(meta)
    assert run("stats", str(root))[0] == run("doctor", str(root))[0] == 0


def test_gc_spares_what_was_just_used(root: Path) -> None:
    code, removal = run_json("gc", str(root), "--namespace", NAMESPACE)
    assert (code, removal["chunks"]) == (0, 0)
    assert len(files(root)) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats", "/nonexistent"),
        ("ls", "/nonexistent"),
        ("verify", "/nonexistent"),
        ("gc", "/nonexistent", "--to", "1GiB"),
        ("gc", "{root}"),
        ("gc", "{root}", "--to", "much"),
        ("gc", "{root}", "--older", "7 fortnights"),
        ("gc", "{root}", "--namespace", "0" * 17),
        ("gc", "{root}", "--namespace", ""),
        ("gc", "{root}", "--namespace", "evictor.lease"),
        ("gc", "{root}", "--namespace", "f" * 16),
        ("ls", "{root}", "--namespace", "f" * 16),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(root: Path, arguments: tuple[str]) -> None:
    result = CliRunner().invoke(app, [one.format(root=root) for one in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert len(files(root)) == 8


def test_the_tools_import_neither_torch_nor_vllm(root: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lmkv.cli import app\n"
        f"assert CliRunner().invoke(app, ['stats', {str(root)!r}]).exit_code == 0\n"
        "assert not {'torch', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
