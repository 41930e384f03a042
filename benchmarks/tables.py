"""The tables of ``report.py``: what each experiment found, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from derived import DISKS, NODES

Result = Mapping[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # its head, its rows


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, rows = table
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def ratio(value: float, spread: Sequence[float] | None = None, digits: int = 2) -> str:
    """``1.02 (0.98 to 1.10)``; 1.02 of what says no range."""
    low_to_high = " to ".join(f"{end:.{digits}f}" for end in spread or ())
    return f"{value:.{digits}f}" + (f" ({low_to_high})" if spread else "")


def io(result: Result) -> Table:
    """Of each size of chunk: rates both ways, against fio's."""
    rows = []
    for size, row in result["by_chunk_mib"].items():
        for way in ("store", "load"):
            one = row[way]
            rows.append(
                (
                    f"{size} MiB", way, ratio(one["gbps"], one["gbps_range"]),
                    ratio(one["fio_gbps"], one["fio_gbps_range"]),
                    ratio(one["ratio"], one.get("ratio_range")),
                    f"{one['cpu_s_per_gb']:.2f}",
                )
            )  # fmt: skip
    return ("chunk", "", "GB/s", "fio, GB/s", "of fio", "CPU, core-s/GB"), rows


def transfer(result: Result) -> Table:
    """Of each size of fragment: how fast, against one copy of as much."""
    rows = [
        (
            f"{row['fragment_bytes'] // 1024} KiB",
            *(
                cell
                for way in ("gather", "scatter")
                for cell in (
                    ratio(row[f"{way}_gbps"], row[f"{way}_gbps_range"], 1),
                    ratio(row[f"{way}_ratio"], row.get(f"{way}_ratio_range")),
                )
            ),
        )
        for row in result["by_fragment"]
    ]
    return ("fragment", "gather, GB/s", "of a copy", "scatter, GB/s", "of a copy"), rows


def memory(result: Result) -> Table:
    """Of each number of processes: loads and memcpy; then what attaching and looking up take."""
    rows = [
        (
            f"{processes} loading at once, GB/s of each",
            ratio(row["scatter_gbps"], row["scatter_gbps_range"], 1),
            ratio(row["memcpy_gbps"], row["memcpy_gbps_range"], 1),
            f"{ratio(row['ratio'], row['ratio_range'])} of memcpy",
        )
        for processes, row in result["by_processes"].items()
    ]
    attach, prompt = result["attach_ms"], result["lookup_512_us"]
    absent = result["lookup_ns_per_key"]["absent"] / 1e3
    rows += [
        (
            "an engine starts, ms", f"{attach['arena']:.1f}", f"{attach['own']:.1f}",
            f"{ratio(attach['more'], attach['more_range'], 1)} more",
        ),
        ("a scheduler attaches, ms", f"{attach['view']:.2f}", "", ""),
        ("512 chunks are looked up, µs", f"{prompt['p50']:.0f}", "", f"p99 {prompt['p99']:.0f}"),
        ("one that is not there, µs", f"{absent:.1f}", "", ""),
    ]  # fmt: skip
    return (
        f"processes, on {result['cores']} cores", "shared memory",
        "memcpy, or an engine's own memory", "compared",
    ), rows  # fmt: skip


def lookup(result: Result) -> Table:
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


def steps(result: Result) -> Table:
    """Of each number of requests: both sides, beside a connector that does nothing."""
    by = {(row["running"], row["kind"]): row for row in result["rows"]}
    rows = []
    for running in sorted({running for running, _ in by}):
        idle, empty = by[running, "idle"], by[running, "empty"]
        sides = (one[f"{side}_us"] for side in ("scheduler", "worker") for one in (idle, empty))
        rows.append(
            (
                f"{running}",
                *(f"{side['p50']:.0f}, {side['p99']:.0f} µs" for side in sides),
                f"{idle['step_us']['p50'] / 1e3:.1f} ms",
            )
        )
    return (
        "running requests", "scheduler's side: p50, p99", "nothing's", "worker's side: p50, p99",
        "nothing's", "a step: p50",
    ), rows  # fmt: skip


def ttft(result: Result) -> Table:
    """Of each kind of hit: how long, and against what."""
    others = {
        "cold": "the one above",
        "slow_cold": "the same engine without lmkv",
        "prefix_cache_hit": "a hit in vLLM's own cache",
        "copy_bound": "that and one copy of its bytes",
        "bound": "fio's time for its bytes and two own hits",
    }
    short, long = result["pair_tokens"], result["tokens"]
    names = {
        "cold": (short, "computed, without lmkv"),
        "miss": (short, "computed and stored"),
        "slow_disk": (short, "computed beside a disk that answers half a minute late"),
        "stored": (long, "computed and stored"),
        "prefix_cache_hit": (long, "a hit in vLLM's own cache"),
        "memory_hit": (long, "a hit in lmkv's host memory"),
        "node_hit": (long, "a hit in the node's shared host memory, in another engine"),
        "disk_hit": (long, "a hit on the disk, in another engine"),
    }
    rows = []
    for kind, (tokens, name) in names.items():
        compared, targets = [], []
        for key, target in result["targets"].items():
            mine, other = key.split("_vs_")
            if mine == kind:
                of = others[other]
                compared.append(f"{ratio(result['ratios'][key], result['ranges'][key])} of {of}")
                targets.append(f"{target:.2f}")
        took = f"{result[f'{kind}_ms']:,.0f} ms"
        rows.append((f"{tokens:,}", name, took, "; ".join(compared), "; ".join(targets)))
    for one in result["slow_disk_trials"]:
        of = f"{one:.2f} of the same engine without lmkv"
        rows.append((f"{short:,}", "the same, where it tries that disk", "", of, ""))
    return ("tokens", "", "time to first token", "compared", "at most"), rows


def break_even(result: Result) -> Table:
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


def peers(result: Result) -> Table:
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


def storage_layers(result: Result) -> Table:
    """Of each layer: how long it takes, and over lmkv; or why there is no number."""
    rows = []
    for one in result["layers"].values():
        if "failed" in one:
            said = "; ".join(filter(None, (one["failed"], one["published"])))
            rows.append((one["title"], "", said, "", "", "", "", ""))
            continue
        cells = [
            cell
            for time in ("store", "disk", "load")
            for cell in (
                f"{one[f'{time}_ms']:,.0f} ms",
                ratio(one[f"{time}_ratio"], one[f"{time}_ratio_range"]),
            )
        ]
        rows.append((one["title"], one["checks"], *cells))
    of = "of lmkv"
    return (
        f"{result['bytes'] / 1e6:,.0f} MB", "checks", "stored, as it says", of,
        "on the disk", of, "loaded", of,
    ), rows  # fmt: skip


def interference(result: Result) -> Table:
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


def workloads(result: Result) -> Table:
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


def scale(result: Result) -> Table:
    """Of a large directory: what an engine does with it."""
    names = {
        "count_dropped_s": "counting it all, when the kernel has forgotten it",
        "count_warm_s": "counting it all again",
        "lookup_s": "looking up a prompt of 512 chunks that are known",
        "evict_s": f"evicting {result['evicted']:,}",
    }
    rows = []
    for name, what in names.items():
        if name in result:
            times, unit = (1e3, "ms") if name == "lookup_s" else (1.0, "s")
            spread = [end * times for end in result.get(f"{name}_range", ())]
            rows.append((what, f"{ratio(result[name] * times, spread)} {unit}"))
    memory = f"{result['count_memory_per_file']:.0f} bytes"
    rows.append(("memory a chunk, while counting", memory))
    return (f"{result['files']:,} chunks", ""), rows


def derived() -> Table:
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
