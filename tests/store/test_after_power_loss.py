"""What the tools make of a directory that a power loss has left, and what they leave themselves.

What engines make of it is in tests/cpp/test_power_loss.cpp.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkv.cli import app
from lmkv.namespace import Namespace

sys.path.insert(0, str(Path(__file__).parent))
from prompts import CHUNK_BYTES, Core

CHUNKS = 6


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    core = Core(str(tmp_path), free_space_floor=0)
    core.store("a", CHUNKS)
    core.engine.close()
    return tmp_path


def files(root: Path) -> list[Path]:
    return sorted(root.glob("v1/*/r0/*/*.kv"))


def lose_power(root: Path) -> int:
    """Names without bytes, sizes without data, torn pages, writers that are gone; bad chunks."""
    empty, zeros, torn, cut = files(root)[:4]
    empty.write_bytes(b"")
    zeros.write_bytes(bytes(CHUNK_BYTES))
    torn.write_bytes(torn.read_bytes()[: CHUNK_BYTES - 512] + b"\xee" * 512)
    os.truncate(cut, 4096)
    long_ago = time.time() - 7200
    for number, size in enumerate((0, 4096, CHUNK_BYTES)):
        left = cut.parent / f"host-77-{number:016x}"
        left.write_bytes(bytes(size))
        os.utime(left, (long_ago, long_ago))
    (root / "v1" / "evictor.lease").write_bytes(b"")
    (root / "v1" / "evictor.lease.taken").write_bytes(bytes(40))
    return 4


def test_verify_removes_what_was_lost_and_nothing_else(root: Path) -> None:
    bad = lose_power(root)
    code, out = run("verify", str(root), "--json")
    found = json.loads(out)
    assert (code, found["sound"], len(found["bad"])) == (1, CHUNKS - bad, bad)
    assert run("verify", str(root), "--delete")[0] == 0
    code, out = run("verify", str(root), "--json")
    found = json.loads(out)
    assert (code, found["sound"], found["abandoned"]) == (0, CHUNKS - bad, 0)
    assert len(files(root)) == CHUNKS - bad
    assert not list(root.glob("v1/*/r0/*/host-*"))


@pytest.mark.parametrize("meta", [b"", b'{\n  "namespace": "00', bytes(400), None])
def test_every_tool_works_whatever_is_left_of_meta_json(root: Path, meta: bytes | None) -> None:
    bad = lose_power(root)
    place = next(root.glob("v1/*/r0")).parent / "meta.json"
    if meta is not None:
        place.write_bytes(meta)
    code, out = run("stats", str(root), "--json")
    (one,) = json.loads(out)["namespaces"]
    assert (code, one["model"], one["chunks"]) == (0, "", CHUNKS)
    assert run("ls", str(root))[0] == run("doctor", str(root))[0] == 0
    assert run("verify", str(root), "--delete")[0] == 0
    assert len(files(root)) == CHUNKS - bad
    assert run("gc", str(root), "--older", "1d")[0] == 0


def test_the_next_engine_mends_meta_json_and_stats_say_the_model_again(tmp_path: Path) -> None:
    namespace = Namespace({"model": "m", "dtype": "bfloat16"})
    namespace.write_meta(str(tmp_path), {"model": "org/model"})
    folder = namespace.directory(str(tmp_path)) / "r0" / "abc"
    folder.mkdir(parents=True)
    (folder / ("abc" + "0" * 61 + ".kv")).write_bytes(b"")
    (namespace.directory(str(tmp_path)) / "meta.json").write_bytes(b"")
    assert json.loads(run("stats", str(tmp_path), "--json")[1])["namespaces"][0]["model"] == ""
    assert namespace.write_meta(str(tmp_path), {"model": "org/model"}) is None
    (one,) = json.loads(run("stats", str(tmp_path), "--json")[1])["namespaces"]
    assert one["model"] == "org/model"


def test_a_clean_up_that_is_killed_leaves_no_file_of_its_own(root: Path) -> None:
    before = sorted(root.rglob("*"))
    script = (
        "import os, signal, sys\n"
        "from lmkv import tree\n"
        "die = lambda *arguments, **more: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.stat = os.fstat = die  # with which it reads the filesystem's clock\n"
        "tree.filesystem_now(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    assert done.returncode == -9
    assert sorted(root.rglob("*")) == before
