"""`lmkv demo --headless`: the whole experiment in a terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from lmkv.demo import model_choice, report
from lmkv.demo import plan as plans
from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet
from lmkv.demo.measure import Results, measure
from lmkv.demo.plan import Settings, check_json_file
from lmkv.demo.run_folder import run_folder


def run(settings: Settings, console: Console) -> Results:
    """Starts the engines, asks, prints the table, stops the engines. Blocks for minutes.

    Raises `DemoError`; whatever happens, no engine is left behind.
    """
    check_json_file(settings.json_file)
    with console.status("preparing the model"):
        plan = plans.make(settings, model_choice.USUAL_LENGTH)
    with run_folder() as folder:
        directory = plans.make_directory(settings, folder)
        plan = plan.with_directory(directory)
        started = time.monotonic()
        with Fleet(plan.specs, folder) as fleet:
            try:
                with _Display(console, fleet.engines) as display:
                    fleet.start(display.engines, settings.timeout_s)
                    results = measure(
                        fleet,
                        directory,
                        plan.document.messages(settings.question),
                        settings.max_tokens,
                        display.step,
                    )
            except DemoError:
                console.print(f"The engines' logs are in {folder}", soft_wrap=True, markup=False)
                raise
            with console.status("stopping the engines"):
                fleet.stop()
    asked = f"{plan.model}, {plan.document.name}: {settings.question}"
    console.print(asked, style="bold", markup=False)
    console.print(report.as_text(results))
    if settings.json_file is not None:
        about = _about(settings, plan.model, plan.document.name, time.monotonic() - started)
        report.write_json(settings.json_file, report.as_json(results, about))
    return results


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
