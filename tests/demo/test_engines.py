"""Engine processes: started, ready, dead, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

import psutil
from fake_process import CPU, fake_command, fake_spec

from lmkv.demo import engines, keeper, launch, ports
from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet
from lmkv.demo.launch import EngineSpec


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    """One whose command starts the fake engine, as that of all others then does."""
    monkeypatch.setattr(launch, "command", fake_command)
    return fake_spec()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """The file in which a fake engine says which processes it started; none may be left."""
    file = tmp_path / "family"
    yield file
    for pid in members(file):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def members(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_ready(engine: EngineProcess) -> None:
    deadline = time.monotonic() + 20
    while engine.poll() is not State.READY:
        assert time.monotonic() < deadline, engine.last_lines()
        time.sleep(0.05)


def poll_for(engine: EngineProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        engine.poll()
        time.sleep(0.05)


def test_an_engine_becomes_ready_and_stops(spec: EngineSpec, tmp_path: Path) -> None:
    engine = EngineProcess(spec, tmp_path / "plain-a.log")
    engine.start()
    assert engine.state is State.STARTING
    try:
        wait_ready(engine)
        assert engine.ready_s > 0
    finally:
        engine.stop()
    assert engine.state is State.STOPPED
    assert engine.pid is not None
    assert not alive(engine.pid)


def test_stopping_ends_processes_that_ignore_sigterm_and_left_the_session(
    spec: EngineSpec, tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineProcess(fake_spec("--family", str(family)), tmp_path / "log")
    engine.start()
    try:
        wait_ready(engine)
        pids = members(family)
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
    finally:
        engine.stop()
    assert not any(alive(pid) for pid in pids)


PARENT = """
import sys, time
from pathlib import Path
from lmkv.demo import launch
from lmkv.demo.engines import EngineProcess
sys.path.insert(0, {tests!r})
from fake_process import fake_command, fake_spec
spec = fake_spec("--family", {family!r})
launch.command = fake_command
engine = EngineProcess(spec, Path({log!r}))
engine.start()
print(engine.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(
    tmp_path: Path, family: Path, eventually: Callable[..., None]
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that started an engine with a family, and the id of the engine's keeper."""
    program = PARENT.format(
        tests=str(Path(__file__).parent), family=str(family), log=str(tmp_path / "log")
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        keeper_pid = int(process.stdout.readline())
        eventually(lambda: len(members(family)) == 3)
        yield process, keeper_pid
    finally:
        process.kill()
        process.wait()


def test_kill_9_of_the_demo_leaves_no_process(
    parent: tuple[subprocess.Popen[str], int], family: Path, eventually: Callable[..., None]
) -> None:
    process, keeper_pid = parent
    pids = [keeper_pid, *members(family)]
    assert all(alive(pid) for pid in pids)
    process.kill()
    eventually(lambda: not any(alive(pid) for pid in pids), keeper.GRACE_S + 10)


def test_kill_9_of_the_keeper_ends_the_engine(
    parent: tuple[subprocess.Popen[str], int], family: Path, eventually: Callable[..., None]
) -> None:
    _, keeper_pid = parent
    os.kill(keeper_pid, signal.SIGKILL)
    eventually(lambda: not alive(members(family)[0]))


def test_an_engine_that_dies_is_named_with_its_last_lines(spec: EngineSpec, tmp_path: Path) -> None:
    engine = EngineProcess(fake_spec("--die", "0.5"), tmp_path / "log")
    engine.start()
    with pytest.raises(DemoError, match=r"plain-a died .*exit status 7") as death:
        poll_for(engine, seconds=20)
    assert "the fake engine had enough" in death.value.log
    assert engine.state is State.DEAD
    engine.stop()


def test_a_fleet_stops_every_engine_when_one_dies(spec: EngineSpec, tmp_path: Path) -> None:
    doomed = fake_spec("--die", "0", "--port", "0", name="plain-b")  # never healthy on its port
    specs = [fake_spec(name="plain-a"), doomed]
    with Fleet(specs, tmp_path) as fleet, pytest.raises(DemoError, match="plain-b died"):
        fleet.start(lambda engines: None, timeout_s=30)
    assert all(engine.pid and not alive(engine.pid) for engine in fleet)


def test_an_engine_that_is_never_ready_is_an_error(spec: EngineSpec, tmp_path: Path) -> None:
    silent = [
        sys.executable,
        "-c",
        "import time; print('still loading', flush=True); time.sleep(99)",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "command", lambda spec: silent)
        with (
            Fleet([spec], tmp_path) as fleet,
            pytest.raises(DemoError, match="plain-a was not ready after 1 s") as error,
        ):
            fleet.start(lambda engines: None, timeout_s=1)
    assert "still loading" in error.value.log
    assert "--timeout" in error.value.hint


def test_settling_waits_for_a_busy_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    burn = (
        "import time; print('burning', flush=True); end = time.time() + 3\n"
        "while time.time() < end: pass\n"
        "time.sleep(99)"
    )
    monkeypatch.setattr(launch, "command", lambda spec: [sys.executable, "-c", burn])
    with Fleet([fake_spec()], tmp_path) as fleet:
        for engine in fleet:
            engine.start()
            eventually(lambda engine=engine: "burning" in engine.last_lines())
        start = time.monotonic()
        fleet.settle()
        assert time.monotonic() - start > 0.8


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("ModuleNotFoundError: No module named 'lmkv._C'", "make build"),
        ("OSError: [Errno 98] Address already in use", "--port"),
        ("OSError: nope/x is not a local folder and is not a valid model identifier", "--model"),
        ("OSError: Could not load this library: a/libtorchcodec_image.so", "pip uninstall"),
        ("Worker proc VllmWorker-0 died unexpectedly (exit code: -9)", "out of memory"),
        ("all is well", ""),
    ],
)
def test_a_known_cause_of_death_comes_with_advice(log: str, advice: str) -> None:
    assert advice in engines.explain(log)


@pytest.mark.engine
def test_a_bad_model_is_an_error_with_vllms_own_words(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "nonsense", "architectures": ["No"]}')
    spec = EngineSpec("plain-a", "plain", str(model), ports.choose(1)[0], CPU)
    with (
        Fleet([spec], tmp_path) as fleet,
        pytest.raises(DemoError, match="plain-a died before it was ready") as error,
    ):
        fleet.start(lambda engines: None, timeout_s=200)
    assert "nonsense" in error.value.log
