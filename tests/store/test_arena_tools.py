"""``lmkv stats`` and ``lmkv gc --memory``: what engines share in memory, and its return."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkv._C import arena_report, slab_bytes
from lmkv.cli import app

sys.path.insert(0, str(Path(__file__).parent))
from prompts import BLOCK_BYTES, PER_CHUNK, Core

SLAB_BYTES = slab_bytes(BLOCK_BYTES, PER_CHUNK)
NAME = f"lmkv-{os.geteuid()}-{SLAB_BYTES}.arena"
LOCK_AT = 4096  # csrc/arena/arena_layout.hpp: ArenaControl::lock


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), terminal_width=200)
    return result.exit_code, result.stdout


def run_json(*arguments: object) -> tuple[int, dict]:
    code, out = run(*arguments, "--json")
    return code, json.loads(out)


def core_in(root: Path, arena: Path) -> Core:
    core = Core(str(root), arena_directory=str(arena), free_space_floor=0)
    assert core.engine.info()["arena_error"] == ""
    deadline = time.monotonic() + 20
    while (report := arena_report(str(arena), SLAB_BYTES)) and report.slots.bare:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return core


def test_stats_show_an_arena(tmp_path: Path, memory_folder: Path) -> None:
    core = core_in(tmp_path, memory_folder)
    core.store("a", 3)
    code, found = run_json("stats", tmp_path, "--arena-directory", memory_folder)
    assert code == 0
    (arena,) = found["arenas"]
    assert arena["path"] == str(memory_folder / NAME)
    assert (arena["slots"], arena["bytes"]) == (8, 8 * SLAB_BYTES)
    assert arena["bytes_taken"] == arena["bytes"]
    assert (arena["ready"], arena["held"], arena["orphaned"]) == (3, 0, 0)
    assert arena["engines"] == [{"pid": os.getpid(), "alive": True}]
    assert (arena["repairs"], arena["fault"], arena["error"]) == (0, "", "")
    code, out = run("stats", tmp_path, "--arena-directory", memory_folder)
    assert code == 0
    assert f"Host memory that engines share, in {memory_folder}" in out
    assert "nobody uses it" not in out
    core.engine.close()


def test_stats_say_nothing_of_arenas_where_there_is_none(
    tmp_path: Path, memory_folder: Path
) -> None:
    code, out = run("stats", tmp_path, "--arena-directory", memory_folder)
    assert (code, "Host memory" in out) == (0, False)
    assert run_json("stats", tmp_path, "--arena-directory", memory_folder)[1]["arenas"] == []
    assert run("stats", tmp_path, "--arena-directory", memory_folder / "missing")[0] == 0


def test_the_directory_of_the_environment_is_the_default(
    tmp_path: Path, memory_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_in(tmp_path, memory_folder)
    monkeypatch.setenv("LMKV_ARENA_DIRECTORY", str(memory_folder))
    assert len(run_json("stats", tmp_path)[1]["arenas"]) == 1
    core.engine.close()


def test_an_arena_that_nobody_uses_is_said_to_be_so_and_gc_gives_it_back(
    tmp_path: Path, memory_folder: Path
) -> None:
    core = core_in(tmp_path, memory_folder)
    core.store("a", 3)
    core.engine.close()
    del core
    _, out = run("stats", tmp_path, "--arena-directory", memory_folder)
    assert f"{memory_folder / NAME}: nobody uses it" in out
    code, would = run_json("gc", "--memory", "--arena-directory", memory_folder, "--dry-run")
    assert (code, would["dry_run"]) == (0, True)
    assert would["bytes"] >= 3 * SLAB_BYTES
    assert (memory_folder / NAME).exists()
    code, done = run_json("gc", "--memory", "--arena-directory", memory_folder)
    assert (code, done) == (0, would | {"dry_run": False})
    assert list(memory_folder.iterdir()) == []
    assert len(list(tmp_path.glob("v1/*/r0/*/*.kv"))) == 3
    code, out = run("gc", "--memory", "--arena-directory", memory_folder)
    assert (code, out) == (0, f"no arena of this user in {memory_folder}\n")


def test_gc_leaves_an_arena_that_engines_use(tmp_path: Path, memory_folder: Path) -> None:
    core = core_in(tmp_path, memory_folder)
    core.store("a", 3)
    code, out = run("gc", "--memory", "--arena-directory", memory_folder)
    assert code == 1
    assert f"left as it is: engines use it (process {os.getpid()})" in out
    # What the engine stores from then on is as good as before.
    core.store("b", 8)
    core.engine.close()
    assert run_json("verify", tmp_path)[1]["sound"] == 11


def test_gc_of_memory_is_of_nothing_else(tmp_path: Path, memory_folder: Path) -> None:
    for more in ((tmp_path,), ("--older", "7d"), ("--to", "1GiB"), ("--namespace", "0" * 16)):
        arguments = map(str, ("gc", "--memory", "--arena-directory", memory_folder, *more))
        result = CliRunner().invoke(app, list(arguments))
        assert (result.exit_code, result.stderr[:7]) == (2, "error: ")


def with_the_lock(arena: Path, then: str) -> list[str]:
    """A program that takes the arena's lock, as an engine does, and then does something else."""
    program = (
        "import fcntl, os, signal, struct, sys, time\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "seat = struct.pack('hhqqi', fcntl.F_WRLCK, os.SEEK_SET, (1 << 60) + 1000, 1, 0)\n"
        "fcntl.fcntl(file, 37, seat)\n"  # F_OFD_SETLK, which Python names from 3.13 on
        "os.pwrite(file, struct.pack('<Q', 12345 << 16 | 1000), int(sys.argv[2]))\n"
    )
    return [sys.executable, "-c", program + then, str(arena), str(LOCK_AT)]


def test_what_was_repaired_is_said(tmp_path: Path, memory_folder: Path) -> None:
    core = core_in(tmp_path, memory_folder)
    core.store("a", 3)
    dies = with_the_lock(memory_folder / NAME, "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run(dies, check=False).returncode == -signal.SIGKILL
    core.store("b", 1)
    _, out = run("stats", tmp_path, "--arena-directory", memory_folder)
    assert "in the middle of a change: 1" in out
    (arena,) = run_json("stats", tmp_path, "--arena-directory", memory_folder)[1]["arenas"]
    assert (arena["repairs"], arena["ready"], arena["fault"]) == (1, 4, "")
    core.engine.close()


def test_an_arena_that_cannot_be_read_is_said(tmp_path: Path, memory_folder: Path) -> None:
    path = memory_folder / NAME
    path.write_bytes(bytes(4 << 20))
    path.chmod(0o600)
    code, out = run("stats", tmp_path, "--arena-directory", memory_folder)
    assert code == 1
    assert f"{path} cannot be read: no arena" in out
    code, found = run_json("stats", tmp_path, "--arena-directory", memory_folder)
    assert (code, found["arenas"][0]["error"]) == (1, "no arena")
    code, out = run("gc", "--memory", "--arena-directory", memory_folder)
    assert (code, out) == (1, f"{path}: left as it is: no arena\n")


def test_a_process_that_is_stopped_with_the_lock_holds_up_nobody_for_long(
    tmp_path: Path, memory_folder: Path
) -> None:
    core_in(tmp_path, memory_folder).engine.close()
    stops = with_the_lock(memory_folder / NAME, "print('held', flush=True); time.sleep(60)")
    with subprocess.Popen(stops, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        code, out = run("stats", tmp_path, "--arena-directory", memory_folder)
        holder.kill()
    assert code == 1
    assert "a process that is stopped has its lock" in out
    assert run("stats", tmp_path, "--arena-directory", memory_folder)[0] == 0
