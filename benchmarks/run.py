"""Every measurement of lmkv, one after the other, each into a JSON file that says how it was made.

    python benchmarks/run.py [--path DIR] [--quick | --full] [--results DIR] [--only NAME ...]

``--path`` is a directory on the disk that is to be measured (default: build/benchmarks); what is
made there is removed. ``--results`` (default: benchmarks/results) gets NAME.json of each
experiment: the command, the machine, the versions, when and how long, and what the command found,
or why it failed; and NAME.log, what it printed. ``report.py`` makes a page of them.
A run that was interrupted goes on where it was: what was measured of this commit, in this way and
on this machine, is not measured again, unless the checkout has more than the commit, or ``--again``
is given. An experiment that fails does not end the others; the exit status is then 1. When this is
ended (Ctrl-C, SIGTERM), so is all that it has started.

Nothing else should run meanwhile. Before each experiment what is to be written is written, and, as
root, the page cache is dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import processes
from experiments import EXPERIMENTS, Experiment
from machine import machine, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[1]
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
LONGEST_SECONDS = 3600
MEASURED_AS = ("command", "machine", "versions")  # what a result is of


def settle() -> None:
    """What is to be written is written; what was read is forgotten, where that is allowed."""
    os.sync()
    with contextlib.suppress(OSError):
        DROP_CACHES.write_text("3", encoding="ascii")


class Runner:
    """Runs experiments over ``path`` into the folder ``results``."""

    def __init__(self, path: Path, results: Path, *, is_full: bool) -> None:
        self._path = path
        self._results = results
        self._is_full = is_full
        self._of = {"machine": machine(path), "versions": versions()}

    def is_done(self, experiment: Experiment) -> bool:
        """Whether there is a result of the same command, machine and versions."""
        try:
            known = json.loads(self._file(experiment).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        commit = self._of["versions"]["commit"]
        if not commit or commit.endswith("+"):  # whatever that is
            return False
        about = self._about(experiment)
        return "result" in known and all(known.get(name) == about[name] for name in MEASURED_AS)

    def run(self, experiment: Experiment) -> str:
        """Measure; what went wrong, or ""."""
        settle()
        begun, begin = datetime.now(timezone.utc), time.monotonic()
        found = self._measured(experiment)
        about = self._about(experiment) | found
        about["begun"] = begun.isoformat(timespec="seconds")
        about["seconds"] = round(time.monotonic() - begin, 1)
        self._write(self._file(experiment), about)
        return str(found.get("failed", ""))

    def _measured(self, experiment: Experiment) -> dict[str, Any]:
        """Its result, or why it failed."""
        raw = self._results / f".{experiment.name}.{os.getpid()}.json"
        command = experiment.command(self._path, raw, is_full=self._is_full)
        try:
            with (self._results / f"{experiment.name}.log").open("wb") as output:
                status = processes.run(
                    command, output=output, cwd=self._path, timeout=LONGEST_SECONDS
                )
            if status:
                return {"failed": f"exit status {status}"}
            return {"result": json.loads(raw.read_text(encoding="utf-8"))}
        except subprocess.TimeoutExpired:
            return {"failed": f"it took more than {LONGEST_SECONDS} s"}
        except (OSError, ValueError) as error:
            return {"failed": type(error).__name__}
        finally:
            raw.unlink(missing_ok=True)

    def _file(self, experiment: Experiment) -> Path:
        return self._results / f"{experiment.name}.json"

    def _about(self, experiment: Experiment) -> dict[str, Any]:
        words = experiment.command(Path("DIR"), Path("FILE"), is_full=self._is_full)
        # As somebody types it in a checkout.
        command = " ".join(["python", *words[1:]]).replace(f"{ROOT}/", "")
        command = command.replace("python -c from lmkv.cli import app; app()", "lmkv")
        return {
            "experiment": experiment.name,
            "about": experiment.about,
            "command": command,
            **self._of,
        }

    @staticmethod
    def _write(file: Path, result: dict[str, Any]) -> None:
        """Whole or not at all."""
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        part.replace(file)


def main() -> None:
    """See the module."""
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(description="Every measurement of lmkv.")
    parser.add_argument("--path", type=Path, default=ROOT / "build" / "benchmarks")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--again", action="store_true", help="what is known already, too")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="what is small, five times: the default")
    how.add_argument("--full", action="store_true")
    arguments = parser.parse_args()

    path, results = arguments.path.resolve(), arguments.results.resolve()
    path.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    runner = Runner(path, results, is_full=arguments.full)
    chosen = [experiment for experiment in EXPERIMENTS if experiment.name in arguments.only]
    console = Console(stderr=True)
    failed = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=len(chosen))
        for experiment in chosen:
            progress.update(task, description=experiment.name)
            if not arguments.again and runner.is_done(experiment):
                console.print(f"{experiment.name}: known")
            elif error := runner.run(experiment):
                failed.append(experiment.name)
                log = results / f"{experiment.name}.log"
                console.print(f"{experiment.name}: failed: {error}; see {log}")
            else:
                console.print(f"{experiment.name}: measured")
            progress.advance(task)
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
