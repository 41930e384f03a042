"""All engines of one demo: started together, watched together, and gone together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import psutil

from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.errors import DemoError
from lmkv.demo.launch import EngineSpec

Watch = Callable[[list[EngineProcess]], None]

_IDLE_CORES = 0.15  # four resting engines take about 0.06
_IDLE_WINDOW_S = 0.3


class Fleet:
    """A context manager: whatever ends the `with` block, no engine is left behind."""

    def __init__(self, specs: Iterable[EngineSpec], logs: Path) -> None:
        self.engines = [EngineProcess(spec, logs / f"{spec.name}.log") for spec in specs]
        self._renewed: set[str] = set()  # those to be started afresh once they have ended

    def __enter__(self) -> Fleet:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[EngineProcess]:
        return iter(self.engines)

    def start(self, watch: Watch, timeout_s: float) -> None:
        """Starts the engines and returns when every one of them is ready.

        All at once, but for those that share a GPU: vLLM sizes its KV cache by what is free on
        the device, so each of these is started when the one before it is ready. `watch` is called
        several times a second with the engines. Raises `DemoError` when one dies or is not ready
        in time; the others are then still to be stopped.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            for death in self.advance().values():
                raise death
            watch(self.engines)
            if {engine.state for engine in self.engines} == {State.READY}:
                return
            if time.monotonic() > deadline:
                late = next(engine for engine in self.engines if engine.state is not State.READY)
                raise too_slow(late, timeout_s)
            time.sleep(0.2)

    def advance(self) -> dict[str, DemoError]:
        """Starts every engine whose turn it is and looks at all; who died since the last call."""
        self._replace_the_ended()
        deaths = {}
        for engine in self.engines:
            try:
                if engine.state is State.NEW and not self._device_is_busy(engine):
                    engine.start()
                engine.poll()
            except DemoError as death:
                deaths[engine.spec.name] = death
            except OSError as error:  # no memory for a process, no room for its log
                engine.state = State.DEAD
                deaths[engine.spec.name] = DemoError(
                    f"engine {engine.spec.name} could not be started: {error}"
                )
        return deaths

    def renew(self, name: str) -> None:
        """Tells the engine of that name to end and returns at once.

        An `advance` starts it afresh when nothing of the old one is left.
        """
        for engine in self.engines:
            if engine.spec.name == name:
                engine.request_stop()
                self._renewed.add(name)

    def is_renewed(self, name: str) -> bool:
        """Whether that engine is still to be started afresh."""
        return name in self._renewed

    def _replace_the_ended(self) -> None:
        for position, engine in enumerate(self.engines):
            ended = engine.state in (State.DEAD, State.STOPPED)
            if ended and engine.spec.name in self._renewed:
                self._renewed.remove(engine.spec.name)
                self.engines[position] = EngineProcess(engine.spec, engine.log)

    def _device_is_busy(self, engine: EngineProcess) -> bool:
        """Whether another engine is starting on the same GPU, or still gives back its memory."""
        spec = engine.spec
        if not spec.machine.on_gpu:
            return False
        gpus = len(spec.machine.gpus)
        return any(
            other.state in (State.STARTING, State.STOPPING)
            and other.spec.position % gpus == spec.position % gpus
            for other in self.engines
        )

    def check(self) -> None:
        """Raises `DemoError` when an engine has died."""
        for engine in self.engines:
            engine.poll()

    def settle(self, patience_s: float = 5.0) -> None:
        """Waits until no engine is busy: vLLM's processes spin for about a second after a request.

        Otherwise the last engine's spinning would be measured as the next one's delay. Goes on
        after `patience_s` in any case.
        """
        processes = self._processes()
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            before = _cpu_seconds(processes)
            time.sleep(_IDLE_WINDOW_S)
            if (_cpu_seconds(processes) - before) / _IDLE_WINDOW_S < _IDLE_CORES:
                return

    def stop(self) -> None:
        """Stops all engines, together; returns when nothing of them is left."""
        for engine in self.engines:
            engine.request_stop()
        for engine in self.engines:
            engine.stop()

    def _processes(self) -> list[psutil.Process]:
        found = []
        for engine in self.engines:
            with contextlib.suppress(psutil.Error):
                keeper = psutil.Process(engine.pid)
                found += [keeper, *keeper.children(recursive=True)]
        return found


def too_slow(engine: EngineProcess, timeout_s: float) -> DemoError:
    """What is to be said of an engine that was not ready in time."""
    return DemoError(
        f"engine {engine.spec.name} was not ready after {timeout_s:.0f} s ({engine.stage()})",
        hint="give it more time with --timeout; a model may still be downloading",
        log=engine.last_lines(),
    )


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
