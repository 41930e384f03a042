"""`lmkv demo --headless`: the whole experiment in a terminal."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from lmkv.demo import document as documents
from lmkv.demo import machine, model_choice, ports, report
from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet
from lmkv.demo.launch import EngineSpec
from lmkv.demo.measure import Results, measure
from lmkv.demo.run_folder import KV, free_bytes, run_folder

ENGINES = ("plain-a", "plain-b", "lmkv-a", "lmkv-b")
_LEAST_FREE_BYTES = 1 << 30
_GIB_OF_A_CPU_ENGINE = 3.5  # three processes with vLLM loaded, the smallest model and its KV


@dataclass(frozen=True)
class Settings:
    """What `lmkv demo` was asked to do. `timeout_s` is for the engines' start."""

    engines: tuple[str, ...] = ENGINES
    model: str | None = None
    directory: Path | None = None
    document: Path | None = None
    question: str = documents.DEFAULT_QUESTION
    json_file: Path | None = None
    port: int | None = None
    max_tokens: int = 48
    timeout_s: float = 900.0


def run(settings: Settings, console: Console) -> Results:
    """Starts the engines, asks, prints the table, stops the engines. Blocks for minutes.

    Raises `DemoError`; whatever happens, no engine is left behind.
    """
    names = tuple(name for name in ENGINES if name in settings.engines)
    _check(settings, names)
    this = machine.look()
    _check_memory(this, len(names))
    text = documents.load(settings.document)
    with console.status("preparing the model"):
        model = model_choice.choose(settings.model, this, len(names), text, settings.max_tokens)
    numbers = ports.choose(len(names), settings.port)
    with run_folder() as folder:
        directory = _directory(settings, folder)
        specs = [
            EngineSpec(
                name=name,
                kind=name.split("-")[0],
                model=model.source,
                port=port,
                machine=this,
                position=position,
                engines=len(names),
                directory=directory,
                max_model_len=model.max_len,
            )
            for position, (name, port) in enumerate(zip(names, numbers, strict=True))
        ]
        started = time.monotonic()
        with Fleet(specs, folder) as fleet:
            try:
                with _Display(console, fleet.engines) as display:
                    fleet.start(display.engines, settings.timeout_s)
                    results = measure(
                        fleet,
                        directory,
                        text.messages(settings.question),
                        settings.max_tokens,
                        display.step,
                    )
            except DemoError:
                console.print(f"The engines' logs are in {folder}", soft_wrap=True, markup=False)
                raise
            with console.status("stopping the engines"):
                fleet.stop()
    asked = f"{model.name}, {text.name}: {settings.question}"
    console.print(asked, style="bold", markup=False)
    console.print(report.as_text(results))
    if settings.json_file is not None:
        about = _about(settings, model.name, text.name, time.monotonic() - started)
        report.write_json(settings.json_file, report.as_json(results, about))
    return results


def _check(settings: Settings, names: Sequence[str]) -> None:
    """Finds before anything is started what would fail at the end."""
    if settings.json_file is not None:
        folder = settings.json_file.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or settings.json_file.is_dir():
            raise DemoError(f"cannot write {settings.json_file}: no folder that can be written to")
    if not any(name.startswith("lmkv") for name in names):
        return
    if importlib.util.find_spec("lmkv._C") is None:
        raise DemoError(
            "lmkv's C++ core is not built", hint="`make build`, or `pip install .` in a checkout"
        )


def _check_memory(this: machine.Machine, engines: int) -> None:
    """On a CPU, engines that do not fit would be killed by the system, or other programs would."""
    needed = engines * _GIB_OF_A_CPU_ENGINE
    if not this.on_gpu and this.memory_gib < needed:
        raise DemoError(
            f"{engines} engines need about {needed:.0f} GiB of memory, and {this.memory_gib:.0f} "
            "GiB are free",
            hint="start fewer, as with --engines plain-b,lmkv-a,lmkv-b, or stop other programs",
        )


def _directory(settings: Settings, folder: Path) -> Path:
    """Where the lmkv engines keep KV: the user's directory, or a fresh one that goes away."""
    directory = (settings.directory or folder / KV).expanduser().absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = free_bytes(directory)
    except OSError as error:
        raise DemoError(f"cannot use the directory {directory}: {error.strerror}") from error
    if free < _LEAST_FREE_BYTES:
        raise DemoError(
            f"only {free >> 20} MiB are free under {directory}",
            hint="free some space, or choose another directory with --dir",
        )
    return directory


def _about(settings: Settings, model: str, text: str, total_s: float) -> dict[str, Any]:
    return {
        "model": model,
        "document": text,
        "question": settings.question,
        "directory": str(settings.directory) if settings.directory else None,
        "total_s": total_s,
    }


class _Display:
    """Progress on a terminal; one plain line for every change elsewhere."""

    def __init__(self, console: Console, engines: list[EngineProcess]) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[stage]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks = {
            engine: self._progress.add_task(engine.spec.name, total=1, stage="", start=False)
            for engine in engines
        }
        self._stages: dict[EngineProcess, str] = {}
        self._asking: TaskID | None = None

    def __enter__(self) -> _Display:  # noqa: PYI034 - typing.Self is Python 3.11's
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def engines(self, engines: list[EngineProcess]) -> None:
        """Shows what each starting engine is doing."""
        for engine in engines:
            ready = engine.state is State.READY
            stage = f"ready on port {engine.spec.port}" if ready else engine.stage()
            if self._stages.get(engine) == stage:
                continue
            self._stages[engine] = stage
            self._progress.start_task(self._tasks[engine])
            self._progress.update(self._tasks[engine], stage=stage, completed=int(ready))
            if not self._console.is_terminal:
                self._console.print(f"{engine.spec.name}: {stage} ({engine.elapsed_s:.0f} s)")

    def step(self, words: str) -> None:
        """Shows what is being measured."""
        if not self._console.is_terminal:
            self._console.print(words)
        if self._asking is None:
            self._asking = self._progress.add_task(words, total=None, stage="")
        self._progress.reset(self._asking, description=words)
