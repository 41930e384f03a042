"""The charts of ``report.py``: what was achieved beside its limit, with what was seen of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from derived import DISKS, NODES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "Figure", "break_even", "derived", "drawn_from", "interference", "io", "peers", "save", "steps",
    "transfer", "ttft", "workloads",
]  # fmt: skip

OURS, THEIRS, LIMIT, DERIVED = "#0f766e", "#94a3b8", "#b45309", "#c4b5fd"
WIDTH, HEIGHT = 7.2, 3.0
Result = Mapping[str, Any]


def drawn_from(result: Result | None) -> str:
    """What a chart of ``result`` has as its dc:identifier: a digest of that, and of what draws."""
    digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode())
    for name in ("charts.py", "derived.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def save(figure: Figure, file: Path, result: Result | None = None) -> None:
    """As SVG; of the same numbers always the same bytes. ``result``: which it was drawn from."""
    about = {"Date": None, "Creator": None, "Identifier": drawn_from(result)}
    with mpl.rc_context({"svg.hashsalt": "lmkv", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata=about)


def _figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside what is drawn, not over it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)


def _spread(values: Sequence[float], ranges: Sequence[Sequence[float]]) -> list[list[float]]:
    """How far each range goes below its value, and above."""
    pairs = list(zip(values, ranges, strict=True))
    return [
        [max(0.0, value - low) for value, (low, _) in pairs],
        [max(0.0, high - value) for value, (_, high) in pairs],
    ]


def _bars(
    axes: Axes,
    names: Sequence[str],
    groups: Mapping[str, tuple[str, Sequence[float], Sequence[Sequence[float]] | None]],
) -> None:
    """Grouped bars: of each group its colour, its values, and the range of each value."""
    width = 0.8 / len(groups)
    for number, (label, (colour, values, ranges)) in enumerate(groups.items()):
        at = [i + (number - (len(groups) - 1) / 2) * width for i in range(len(names))]
        spread = None if ranges is None else _spread(values, ranges)
        axes.bar(at, values, width * 0.92, color=colour, label=label, yerr=spread, capsize=2)
    axes.set_xticks(range(len(names)), names)


def io(result: Result) -> Figure:
    """Rates of stores and loads, and fio's."""
    figure, both = _figure(2)
    sizes = result["by_chunk_mib"]
    for axes, way in zip(both, ("store", "load"), strict=True):
        rows = [row[way] for row in sizes.values()]
        _bars(
            axes,
            [f"{size} MiB" for size in sizes],
            {
                "lmkv": (OURS, [r["gbps"] for r in rows], [r["gbps_range"] for r in rows]),
                "fio": (THEIRS, [r["fio_gbps"] for r in rows], [r["fio_gbps_range"] for r in rows]),
            },
        )
        axes.set_title(way)
        axes.set_ylabel("GB/s")
    _legend(figure, both[0])
    return figure


def transfer(result: Result) -> Figure:
    """Gather and scatter as parts of one copy of as many bytes: their limit."""
    figure, (axes,) = _figure()
    rows = result["by_fragment"]
    sizes = [row["fragment_bytes"] / 1024 for row in rows]
    for way, colour in (("gather", OURS), ("scatter", "#2563eb")):
        ratios = [row[f"{way}_ratio"] for row in rows]
        ranges = [row.get(f"{way}_ratio_range", [row[f"{way}_ratio"]] * 2) for row in rows]
        spread = _spread(ratios, ranges)
        axes.errorbar(sizes, ratios, yerr=spread, fmt="o-", color=colour, label=way, capsize=2)
    axes.axhline(1.0, color=LIMIT, linestyle="--", label="one copy")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("fragment, KiB")
    axes.set_ylabel("of a copy")
    _legend(figure, axes)
    return figure


def steps(result: Result) -> Figure:
    """Microseconds of a step: lmkv's, and those of a connector that does nothing."""
    figure, both = _figure(2)
    for axes, side in zip(both, ("scheduler", "worker"), strict=True):
        idle, empty = result[f"{side}_idle_us"], result[f"{side}_empty_us"]
        _bars(
            axes,
            list(idle),
            {
                "lmkv": (OURS, list(idle.values()), None),
                "a connector that does nothing": (THEIRS, list(empty.values()), None),
            },
        )
        axes.axhline(result["budgets_us"][side], color=LIMIT, linestyle="--", label="budget")
        axes.set_title(f"{side}'s side")
        axes.set_xlabel("running requests")
        axes.set_ylabel("µs of a step")
    _legend(figure, both[0])
    return figure


def ttft(result: Result) -> Figure:
    """Milliseconds to the first token, of every document."""
    figure, (axes,) = _figure()
    names = {
        "stored": "computed and stored",
        "disk_hit": "disk hit",
        "memory_hit": "memory hit",
        "node_hit": "node memory hit",
        "prefix_cache_hit": "vLLM's own hit",
    }
    for number, kind in enumerate(names):
        seconds = [document[kind] for document in result["documents"]]
        colour = THEIRS if kind == "prefix_cache_hit" else OURS
        axes.plot(seconds, [number] * len(seconds), "o", color=colour, alpha=0.4)
        axes.plot(result[f"{kind}_ms"] / 1e3, number, "D", color=colour, markersize=9)
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds to the first token: every document, and their median")
    return figure


def peers(result: Result) -> Figure:
    """Seconds to the first token of documents that are loaded, of every system, and computed."""
    figure, (axes,) = _figure()
    measured = {name: one for name, one in result["systems"].items() if "hit_ms" in one}
    for number, name in enumerate(measured):
        colour = OURS if name == "lmkv" else THEIRS
        hits = [document[name]["hit"] for document in result["documents"]]
        axes.plot(hits, [number] * len(hits), "o", color=colour, alpha=0.4)
        axes.plot(measured[name]["hit_ms"] / 1e3, number, "D", color=colour, markersize=9)
    axes.axvline(result["plain"]["cold_ms"] / 1e3, color=LIMIT, linestyle="--", label="computed")
    axes.set_yticks(range(len(measured)), [one["title"] for one in measured.values()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds to the first token in another engine: documents, and their median")
    _legend(figure, axes)
    return figure


def break_even(result: Result) -> Figure:
    """Seconds to the first token of prompts of several lengths: computed, and loaded."""
    figure, (axes,) = _figure()
    rows = result["by_tokens"]
    tokens = [row["tokens"] for row in rows]
    for kind, label, colour in (
        ("cold", "computed, without lmkv", THEIRS),
        ("disk_hit", "loaded from the disk", OURS),
    ):
        seconds = [row[f"{kind}_ms"] / 1e3 for row in rows]
        ranges = [[end / 1e3 for end in row[f"{kind}_range_ms"]] for row in rows]
        axes.errorbar(
            tokens, seconds, yerr=_spread(seconds, ranges), fmt="o-", color=colour, label=label,
            capsize=2,
        )  # fmt: skip
    if result["break_even_tokens"]:
        axes.axvline(result["break_even_tokens"], color=LIMIT, linestyle="--", label="break-even")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{count}" for count in tokens])
    axes.set_yscale("log")
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("seconds to the first token")
    _legend(figure, axes)
    return figure


def interference(result: Result) -> Figure:
    """Of the tokens of a decode, how many came within so many milliseconds."""
    figure, both = _figure(2)
    for axes, (kind, other) in zip(
        both, (("storing", "nothing"), ("loading", "cached")), strict=True
    ):
        labels = {"nothing": "computed only", "cached": "in vLLM's own cache"}
        for name, label, colour, style in (
            (other, labels[other], THEIRS, "-"),
            (kind, {"storing": "stored", "loading": "loaded"}[kind], OURS, "--"),
        ):
            values = result[name]["percentiles_ms"]
            shares = [(number + 1) / 100 for number in range(len(values))]  # 100: the maximum
            axes.plot(values, shares, style, color=colour, label=f"prompts beside it {label}")
        axes.set_xscale("log")
        axes.set_xlabel("ms between tokens")
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    both[0].set_ylabel("of all tokens")
    return figure


def derived() -> Figure:
    """How many times as fast as computing loading would be on GPU nodes: nothing measured."""
    figure, (axes,) = _figure()
    names = [node.name.replace(", ", "\n") for node in NODES]
    width = 0.8 / len(DISKS)
    for number, (disk, gbps) in enumerate(DISKS.items()):
        at = [i + (number - (len(DISKS) - 1) / 2) * width for i in range(len(NODES))]
        values = [node.loaded_per_s(gbps) / node.computed_per_s for node in NODES]
        hatch = ("", "//", "xx")[number]
        axes.bar(
            at, values, width * 0.92, color=DERIVED, hatch=hatch, edgecolor="white",
            label=f"derived: {disk}",
        )  # fmt: skip
    axes.axhline(1.0, color=LIMIT, linestyle="--", label="computed")
    axes.set_xticks(range(len(names)), names, fontsize="small")
    axes.set_yscale("log")
    axes.set_ylabel("times as fast, derived")
    _legend(figure, axes)
    return figure


def workloads(result: Result) -> Figure:
    """How many times as fast as plain vLLM each workload was done."""
    figure, (axes,) = _figure()
    names = [name.replace("_", " ") for name in result]
    values = [one["speedup"] for one in result.values()]
    _bars(axes, names, {"with lmkv": (OURS, values, [o["speedup_range"] for o in result.values()])})
    axes.axhline(1.0, color=LIMIT, linestyle="--", label="plain vLLM")
    axes.set_ylabel("times as fast")
    _legend(figure, axes)
    return figure
