"""`lmkv demo --headless` with real vLLM engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("openai", reason="the demo's dependencies are not installed")

from lmkv.demo import keeper, model
from lmkv.demo.errors import DemoError

pytestmark = pytest.mark.engine

# Where the tests run in the background of a script, SIGINT is ignored, and that is inherited.
LMKV = [sys.executable, "-c", "from lmkv.cli import app; app()"]
COMMAND = ["env", "--default-signal=INT", *LMKV, "demo", "--headless"]


def start(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {"XDG_CACHE_HOME": str(cache), "NO_COLOR": "1", "COLUMNS": "120"}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of our own, with the model of the user's one if that is there."""
    folder = tmp_path_factory.mktemp("cache")
    models = folder / "lmkv" / "models"
    models.mkdir(parents=True)
    try:
        prepared = model.prepare_smollm2()
    except DemoError as error:
        pytest.fail(str(error))
    (models / prepared.name).symlink_to(prepared)
    return folder


@pytest.fixture
def running(cache: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A demo whose engine has started processes of its own, and all of those processes."""
    process = start(cache, "--engines", "plain-a")
    processes: list[psutil.Process] = []
    deadline = time.monotonic() + 240
    try:
        while len(processes) < 4:  # keeper, API server, resource tracker, engine core, ...
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.5)
            processes = family(process)
        yield process, processes
    finally:
        process.kill()
        process.communicate()
        for straggler in left(processes):
            straggler.kill()


def whole_demo(cache: Path, out: Path) -> tuple[dict[str, Any], str]:
    """The results and the output of a demo of three engines."""
    os.sync()  # or the engines share the disk with what was installed and built just before
    process = start(cache, "--engines", "plain-b,lmkv-a,lmkv-b", "--json", str(out))
    try:
        output, _ = process.communicate()
    finally:
        process.kill()  # the keepers end the engines
    assert process.returncode == 0, output
    print(output)
    return json.loads(out.read_text()), output


@pytest.mark.timeout(900)
def test_the_second_lmkv_engine_answers_many_times_faster(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    results, output = whole_demo(cache, out)
    if results["speedup"] < 5 and results["engines"][-1]["reading_s"] > 0.5:
        # 118 MB from a disk that somebody else keeps busy: seen once, at 45 MB/s. Once more.
        results, output = whole_demo(cache, out)
    engines = {engine["name"]: engine for engine in results["engines"]}
    assert list(engines) == ["plain-b", "lmkv-a", "lmkv-b"]
    assert results["speedup"] >= 5
    # What lmkv itself adds to the disk's part, whatever that is.
    own = engines["lmkv-b"]["ttft_first_s"] - engines["lmkv-b"]["reading_s"]
    assert own < engines["plain-b"]["ttft_first_s"] / 8
    assert 0 < engines["lmkv-b"]["reading_s"] < engines["lmkv-b"]["ttft_first_s"]
    assert engines["plain-b"]["reading_s"] == engines["lmkv-a"]["reading_s"] == 0
    assert results["answers_equal"] is True
    assert engines["lmkv-b"]["tokens_loaded"] > 2000
    assert engines["lmkv-a"]["tokens_loaded"] == engines["plain-b"]["tokens_loaded"] == 0
    assert engines["lmkv-a"]["answer"] == engines["lmkv-b"]["answer"] != ""
    # vLLM's own prefix cache answers the second query, with lmkv as without.
    for engine in engines.values():
        assert engine["tokens_kept"] > 2000
        assert engine["ttft_second_s"] < engines["plain-b"]["ttft_first_s"] / 5
    assert "Answers equal: yes" in output
    assert list((cache / "lmkv" / "runs").glob("run-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_its_engines(
    running: tuple[subprocess.Popen[str], list[psutil.Process]], number: int
) -> None:
    process, processes = running
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert left(processes) == []


def test_kill_9_of_the_demo_leaves_no_engine(
    running: tuple[subprocess.Popen[str], list[psutil.Process]],
    eventually: Callable[..., None],
) -> None:
    process, processes = running
    process.kill()
    eventually(lambda: not left(processes), keeper.GRACE_S + 15)


@pytest.mark.timeout(400)
def test_a_model_that_vllm_refuses_is_an_error_with_its_last_words(
    cache: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text('{"model_type": "nonsense"}')
    process = start(cache, "--engines", "plain-a,plain-b", "--model", str(bad))
    try:
        output, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 1
    assert "nonsense" in output
    assert "error: engine plain-" in output
    assert "died before it was ready" in output
