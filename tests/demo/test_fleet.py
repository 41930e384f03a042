"""Engines that share a GPU start one after the other; all others at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lmkv.demo import fleet as fleets
from lmkv.demo import launch
from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.fleet import Fleet
from lmkv.demo.launch import EngineSpec
from lmkv.demo.machine import Machine


@pytest.mark.parametrize(
    ("gpus", "most_at_once"), [((), 4), (("0",), 1), (("0", "1"), 2), (("0", "1", "2", "3"), 4)]
)
def test_engines_that_share_a_gpu_start_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], most_at_once: int
) -> None:
    starting: list[int] = []

    def start(engine: EngineProcess) -> None:
        engine.state = State.STARTING
        engine.polls = 0  # type: ignore[attr-defined]

    def poll(engine: EngineProcess) -> State:
        if engine.state is State.STARTING:
            engine.polls += 1  # type: ignore[attr-defined]
            if engine.polls > 2:  # type: ignore[attr-defined]
                engine.state = State.READY
        return engine.state

    monkeypatch.setattr(EngineProcess, "start", start)
    monkeypatch.setattr(EngineProcess, "poll", poll)
    monkeypatch.setattr(fleets.time, "sleep", lambda _: None)
    machine = Machine(gpus=gpus, gpu_memory_gib=80.0, cores=8, memory_gib=64.0)
    specs = [EngineSpec(f"e{i}", "plain", "m", 1, machine, position=i, engines=4) for i in range(4)]

    def watch(engines: list[EngineProcess]) -> None:
        starting.append(sum(engine.state is State.STARTING for engine in engines))

    fleet = Fleet(specs, tmp_path)
    fleet.start(watch, timeout_s=10)
    assert max(starting) == most_at_once


@pytest.mark.parametrize(("gpus", "started"), [(("0",), False), (("0", "1"), True)])
def test_no_engine_starts_on_a_gpu_whose_memory_another_is_giving_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], started: bool
) -> None:
    monkeypatch.setattr(launch, "command", lambda spec: ["sleep", "600"])
    machine = Machine(gpus=gpus, gpu_memory_gib=80.0, cores=8, memory_gib=64.0)
    specs = [EngineSpec(f"e{i}", "plain", "m", 1, machine, position=i, engines=2) for i in range(2)]
    with Fleet(specs, tmp_path) as fleet:
        old, waiting = fleet.engines
        old.start()
        assert old.pid is not None
        os.kill(old.pid, signal.SIGSTOP)  # it takes as long to end as this test
        fleet.renew("e0")
        fleet.advance()
        assert fleet.engines[0] is old
        assert (waiting.state is State.STARTING) is started
        os.kill(old.pid, signal.SIGCONT)
