"""The session over engines that the demo started itself: processes, real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

import psutil
from fake_process import fake_command, fake_spec

from lmkv.demo import engines, keeper, launch, session
from lmkv.demo.backends import STOPPING, EngineView, OwnedEngines
from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.fleet import Fleet
from lmkv.demo.launch import EngineSpec
from lmkv.demo.session import Session

Eventually = Callable[..., None]
LOOKS_WITHIN_S = 3.0
"""Time enough for the watcher to see something, on a busy machine; less than a slow stop takes."""


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "command", fake_command)
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0.05)


@contextlib.contextmanager
def session_over(
    folder: Path, *specs: EngineSpec, timeout_s: float = 60.0
) -> Iterator[tuple[Session, Fleet]]:
    with (
        Fleet(specs, folder) as fleet,
        Session(OwnedEngines(fleet, timeout_s)) as here,
    ):
        yield here, fleet


def view_of(here: Session, name: str) -> EngineView:
    return next(view for view in here.engines() if view.name == name)


def all_ready(here: Session) -> bool:
    return bool(here.engines()) and all(view.ready for view in here.engines())


def kill(fleet: Fleet, name: str) -> None:
    """Ends the engine's keeper, and the engine with it, without a chance to say goodbye."""
    pid = next(engine.pid for engine in fleet if engine.spec.name == name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_during_a_slow_restart_the_death_of_another_engine_is_seen_at_once(
    tmp_path: Path, eventually: Eventually
) -> None:
    stubborn = fake_spec("--family", str(tmp_path / "family"), name="lmkv-b")
    with session_over(tmp_path, fake_spec(), stubborn) as (here, fleet):
        eventually(lambda: all_ready(here), 30)
        old = psutil.Process(int((tmp_path / "family").read_text().split()[0]))
        here.restart("lmkv-b")
        assert view_of(here, "lmkv-b").state == "starting"
        began = time.monotonic()
        kill(fleet, "plain-a")
        eventually(lambda: view_of(here, "plain-a").state == "dead", LOOKS_WITHIN_S)
        slow = view_of(here, "lmkv-b")
        assert (slow.state, slow.stage) == ("starting", STOPPING)
        assert slow.elapsed_s < LOOKS_WITHIN_S + 1
        assert old.is_running()
        assert [error.message for error in here.trouble()] == ["engine plain-a died (signal 9)"]
        # The old one had all the time it is given, and is gone before there is a new one.
        eventually(lambda: view_of(here, "lmkv-b").stage != STOPPING, 30)
        assert time.monotonic() - began >= keeper.GRACE_S
        assert not old.is_running()
        eventually(lambda: view_of(here, "lmkv-b").ready, 30)
        assert view_of(here, "plain-a").state == "dead"


def test_an_engine_that_never_answers_is_given_up_and_a_restart_recovers(
    tmp_path: Path, eventually: Eventually
) -> None:
    hung = fake_spec("--silent", str(tmp_path / "was silent"), "--family", str(tmp_path / "family"))
    with session_over(tmp_path, hung, timeout_s=3.0) as (here, fleet):
        eventually(lambda: bool(here.engines()) and here.engines()[0].state == "dead", 30)
        assert fleet.engines[0].state is State.STOPPING  # nobody waited for its slow end
        (trouble,) = here.trouble()
        assert trouble.message.startswith("engine plain-a was not ready after 3 s")
        assert "restart it" in trouble.hint
        assert "--timeout" in trouble.hint
        assert "still loading" in trouble.log
        # It is not left running either.
        eventually(lambda: fleet.engines[0].state is State.STOPPED, 30)
        here.restart("plain-a")
        eventually(lambda: all_ready(here), 30)
        assert here.trouble() == []


def test_an_engine_that_died_without_a_known_cause_can_be_restarted_says_the_page(
    tmp_path: Path, eventually: Eventually
) -> None:
    with session_over(tmp_path, fake_spec()) as (here, fleet):
        eventually(lambda: all_ready(here), 30)
        kill(fleet, "plain-a")
        eventually(lambda: bool(here.trouble()))
        assert here.trouble()[0].hint == "restart it"


def test_a_keeper_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(engines, "_STOP_S", 0.5)
    engine = EngineProcess(fake_spec(), tmp_path / "log")
    engine.start()
    assert engine.pid is not None
    eventually(lambda: engine.poll() is State.READY, 30)
    family = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    os.kill(engine.pid, signal.SIGSTOP)  # it does not see that it is to end
    try:
        engine.request_stop()
        assert engine.poll() is State.STOPPING
        eventually(lambda: engine.poll() is State.STOPPED)
        assert len(family) == 2
        eventually(lambda: not any(process.is_running() for process in family))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)
