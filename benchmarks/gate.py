"""Whether lmkv is as good as it was: a short run of what matters most, several times.

    python benchmarks/gate.py [--path DIR] [--gate FILE]

``gate.json`` says what is run, how often, and between which bounds the median of each value has to
lie; ``target`` is what is aimed at where nothing else runs, and is only shown. Bounds leave room
for the noise of shared machines: they are to catch what has become bad, not what is a little worse.
The results and logs of all runs are left in build/gate. The exit status is 1 if a value is out of
its bounds or could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import EXPERIMENTS, Experiment
from rich.console import Console
from rich.table import Table
from run import Runner

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bound:
    """What the median of a value has to be."""

    experiment: str
    value: str  # its keys in the experiment's result, with dots between
    at_least: float
    at_most: float
    target: float

    def holds(self, median: float) -> bool:
        """Whether it is."""
        return self.at_least <= median <= self.at_most

    def __str__(self) -> str:
        if self.at_most == float("inf"):
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}"


def bounds_of(gate: Mapping[str, Any]) -> Iterator[Bound]:
    """All, in the order of the file. Raises ValueError for one that is not understood."""
    for experiment, values in gate["bounds"].items():
        if experiment not in gate["experiments"]:
            raise ValueError(f"nothing runs {experiment}")
        for value, bound in values.items():
            if bound.keys() not in ({"at_least", "target"}, {"at_most", "target"}):
                raise ValueError(f"{experiment}: {value} has not one bound and a target")
            yield Bound(
                experiment, value, bound.get("at_least", float("-inf")),
                bound.get("at_most", float("inf")), bound["target"],
            )  # fmt: skip


def experiments_of(gate: Mapping[str, Any]) -> list[Experiment]:
    """What is run. Raises ValueError for one that there is not."""
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    if unknown := gate["experiments"].keys() - known.keys():
        raise ValueError(f"there is no experiment {', '.join(sorted(unknown))}")
    return [replace(known[name], quick=tuple(words)) for name, words in gate["experiments"].items()]


def value_in(result: Mapping[str, Any], keys: str) -> float:
    """``value_in({"a": {"b": 1}}, "a.b")`` is 1."""
    found: Any = result
    for key in keys.split("."):
        found = found[key]
    return float(found)


def run(
    experiments: Sequence[Experiment], path: Path, results: Path, runs: int, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """The results of each experiment, without those of runs that failed."""
    found: dict[str, list[dict[str, Any]]] = {experiment.name: [] for experiment in experiments}
    for number in range(1, runs + 1):
        folder = results / f"{number}"
        folder.mkdir(parents=True, exist_ok=True)
        runner = Runner(path, folder, is_full=False)
        for experiment in experiments:
            error = runner.run(experiment)
            console.print(f"run {number}: {experiment.name}: {error or 'measured'}")
            if not error:
                text = (folder / f"{experiment.name}.json").read_text(encoding="utf-8")
                found[experiment.name].append(json.loads(text)["result"])
    return found


def judged(
    bounds: Sequence[Bound], found: Mapping[str, Sequence[Mapping[str, Any]]], runs: int
) -> tuple[Table, bool]:
    """What was found of each value, and whether all bounds hold."""
    table = Table("experiment", "value", "median", "of all runs", "bound", "target", "")
    is_good = True
    for bound in bounds:
        values = []
        with contextlib.suppress(KeyError):
            values = sorted(value_in(result, bound.value) for result in found[bound.experiment])
        holds = len(values) == runs and bound.holds(statistics.median(values))
        is_good &= holds
        table.add_row(
            bound.experiment, bound.value, f"{statistics.median(values):.3g}" if values else "",
            " ".join(f"{value:.3g}" for value in values), f"{bound}", f"{bound.target:g}",
            "" if holds else "FAILED" if len(values) == runs else "NOT MEASURED",
        )  # fmt: skip
    return table, is_good


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Whether lmkv is as good as it was.")
    parser.add_argument("--path", type=Path, default=ROOT / "build" / "benchmarks")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "gate")
    parser.add_argument("--gate", type=Path, default=Path(__file__).with_name("gate.json"))
    arguments = parser.parse_args()
    gate = json.loads(arguments.gate.read_text(encoding="utf-8"))
    try:
        bounds, experiments = list(bounds_of(gate)), experiments_of(gate)
    except ValueError as error:
        parser.error(f"{arguments.gate}: {error}")
    console = Console(width=110)
    path, results = arguments.path.resolve(), arguments.results.resolve()
    path.mkdir(parents=True, exist_ok=True)
    found = run(experiments, path, results, gate["runs"], console)
    table, is_good = judged(bounds, found, gate["runs"])
    console.print(table)
    if not is_good:
        sys.exit("error: see the table")


if __name__ == "__main__":
    main()
