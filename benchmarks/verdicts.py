"""What ``report.py`` says of a result in words: where lmkv is ahead, where behind, and why.

The numbers are the result's own, and decide what is said; what is typed in here is only what each
system does, which is the reason whichever way a comparison goes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from layer_systems import LAYERS
from peer_systems import SYSTEMS
from tables import Result, ratio

KINDS = {
    "miss": "a miss",
    "cold": "computing",
    "memory_hit": "a hit in host memory",
    "node_hit": "a hit in the node's memory",
    "prefix_cache_hit": "one in vLLM's own cache",
    "copy_bound": "one in vLLM's own cache and a copy of its bytes",
    "disk_hit": "a hit on the disk",
    "bound": "its bound",
    "slow_disk": "a request beside a slow disk",
    "slow_cold": "one without lmkv",
}


def is_open(spread: Sequence[float]) -> bool:
    """Whether a range of ratios holds 1."""
    return spread[0] <= 1.0 <= spread[1]


def ttft(result: Result) -> Iterator[str]:
    """What missed its target."""
    size = statistics.median(row["bytes"] for row in result["documents"]) / 1e6
    copies = (
        f"it copies the {size:,.0f} MB of such a document, of which a hit in vLLM's own cache "
        "copies nothing; on a CPU that is the work of the model's own cores and memory, and "
        "nothing hides it"
    )
    reasons = {
        "memory_hit_vs_prefix_cache_hit": copies,
        "node_hit_vs_prefix_cache_hit": copies,
        "disk_hit_vs_bound": "what is read is verified as well, and copied once more",
    }
    for name, target in result["targets"].items():
        value, spread = result["ratios"][name], result["ranges"][name]
        if value <= target:
            continue
        what, other = (KINDS[word] for word in name.split("_vs_"))
        room = " (the range holds the target)" if spread[0] <= target else ""
        reason = f": {reasons[name]}" if name in reasons else ""
        yield (
            f"Missed: {what} takes {ratio(value, spread)} of {other}, {target:.2f} is aimed at"
            f"{room}{reason}."
        )


def break_even(result: Result) -> Iterator[str]:
    """Where loading is slower."""
    for row in result["by_tokens"]:
        loaded, computed = row["disk_hit_ms"], row["cold_ms"]
        if loaded >= computed:
            yield (
                f"Behind: {row['tokens']} tokens are loaded in {loaded:,.0f} ms and computed in "
                f"{computed:,.0f} ms; with `load_policy` `auto` they are computed."
            )


def peers(result: Result) -> Iterator[str]:
    """Of each peer: by how much lmkv's hit is quicker or slower; and the same of storing."""
    systems, documents = result["systems"], result["documents"]
    for name, one in systems.items():
        if name == "lmkv" or "hit_ratio" not in one:
            continue
        value, spread = one["hit_ratio"], one["hit_ratio_range"]
        size, own = (f"{its['bytes'] / 1e6:,.0f} MB" for its in (one, systems["lmkv"]))
        way = f"Both wait for the disk, it for {size}, lmkv for {own}. {SYSTEMS[name].way}".rstrip()
        if spread[0] > 1.0:
            said = f"lmkv is ahead: a hit takes {ratio(value, spread)} times as long as lmkv's."
        elif is_open(spread):
            said = f"no difference is shown: a hit takes {ratio(value, spread)} of lmkv's. {way}"
        else:
            said = f"lmkv is behind: a hit takes {ratio(value, spread)} of lmkv's. {way}"
        # What storing adds to computing, of either, in the same document.
        costs = [
            (row[name]["store"] / row[name]["cold"]) / (row["lmkv"]["store"] / row["lmkv"]["cold"])
            for row in documents
        ]
        middle, ends = statistics.median(costs), [min(costs), max(costs)]
        how = "no difference is shown" if is_open(ends) else "less" if ends[1] < 1.0 else "more"
        yield f"{one['title']}: {said} Storing costs {ratio(middle, ends)} of lmkv's: {how}."


def storage_layers(result: Result) -> Iterator[str]:
    """Of each peer's layer: where lmkv is ahead, where behind, and why."""
    words = {"load": "Loads", "store": "Stores, as it says,", "disk": "Stores until on the disk"}
    layers = {name: one for name, one in result["layers"].items() if "failed" not in one}
    for name, one in layers.items():
        if name.startswith("lmkv"):
            continue
        said = []
        for time, what in words.items():
            value, spread = one[f"{time}_ratio"], one[f"{time}_ratio_range"]
            ahead = "no difference is shown" if is_open(spread) else "lmkv is ahead"
            how = "lmkv is behind" if spread[1] < 1.0 else ahead
            said.append(f"{what} take {ratio(value, spread)} of lmkv's time: {how}.")
        yield f"{one['title']}: {' '.join(said)} {LAYERS[name].way}"
    if slabs := layers.get("lmkv_slabs"):
        load, store = (
            ratio(slabs[f"{time}_ratio"], slabs[f"{time}_ratio_range"])
            for time in ("load", "store")
        )
        yield (
            "lmkv copies from an engine's KV cache and to it, as nothing else does here. Without "
            f"that its loads take {load} of its time, its stores {store}."
        )


def interference(result: Result) -> Iterator[str]:
    """Where another's tokens come later."""
    rows = [(kind, label) for kind in ("storing", "loading") for label in ("p50", "p99")]
    slower = [row for row in rows if result[row[0]][f"{row[1]}_ratio_range"][0] > 1.0]
    for kind, label in slower:
        row = result[kind]
        value = ratio(row[f"{label}_ratio"], row[f"{label}_ratio_range"])
        yield (
            f"Behind: while prompts are {'stored' if kind == 'storing' else 'loaded'}, {label} is "
            f"{value} of what it is otherwise: lmkv's threads and the model's, on "
            f"{result['about']['cores']} cores, share caches and memory."
        )
    if not slower:
        yield "No range lies above 1: no token is shown to come later."


def workloads(result: Result) -> Iterator[str]:
    """Where lmkv is not quicker."""
    for name, one in result.items():
        spread = one["speedup_range"]
        if spread[0] <= 1.0:
            how = "no difference is shown" if is_open(spread) else "behind"
            value = ratio(one["speedup"], spread)
            yield f"{name.replace('_', ' ')}: {how}: {value} times as fast as plain vLLM."


def steps(result: Result) -> Iterator[str]:
    """What is over its budget."""
    for side, budget in result["budgets_us"].items():
        for running, taken in result[f"{side}_idle_us"].items():
            if taken > budget:
                empty = result[f"{side}_empty_us"][running]
                yield (
                    f"Over its budget of {budget:.0f} µs: the {side}'s side with {running} running "
                    f"requests, {taken:.0f} µs. A connector that does nothing takes {empty:.0f} µs "
                    "there: behind a long step nothing of it is in the processor's caches any more."
                )


def io(result: Result) -> Iterator[str]:
    """Where fio is quicker."""
    for size, row in result["by_chunk_mib"].items():
        for way in ("store", "load"):
            one = row[way]
            if one["ratio"] >= 1.0:
                continue
            spread = one.get("ratio_range")
            how = "No difference is shown" if spread and is_open(spread) else "Behind"
            hashing = one["checksum_share"] / one["gbps"] / one["cpu_s_per_gb"]
            yield (
                f"{how}: {way}s of {size} MiB go at {ratio(one['ratio'], spread)} of fio's rate. "
                f"Checksums, of which fio has none, are {hashing:.0%} of their CPU."
            )


def transfer(result: Result) -> Iterator[str]:
    """How far from one copy."""
    rows = result["by_fragment"]
    below = [
        (way, row["fragment_bytes"] // 1024, row[f"{way}_ratio"])
        for way in ("gather", "scatter")
        for row in rows
        if row[f"{way}_ratio"] < 1.0
    ]
    if below:
        way, size, least = min(below, key=lambda one: one[2])
        yield (
            f"Below one copy in {len(below)} of {2 * len(rows)} cases, at worst {way} of {size} "
            f"KiB with {least:.2f}: a copy is one run, which the processor reads ahead of itself; "
            "fragments lie at random, and each begins anew."
        )


def memory(result: Result) -> Iterator[str]:
    """Which loads are too far from memcpy, and what is not in the table."""
    rows, cores, target = result["by_processes"], result["cores"], result["target"]
    for processes, row in rows.items():
        if row["ratio"] >= target:
            continue
        room = " (the range holds the target)" if row["ratio_range"][1] >= target else ""
        yield (
            f"Missed: with {processes} at once loads have "
            f"{ratio(row['ratio'], row['ratio_range'])} of memcpy's rate, {target:.2f} is aimed at"
            f"{room}."
        )
    if max(map(int, rows)) > cores:
        yield f"Where more processes load than there are cores ({cores}), they take turns on them."
    first = ", ".join(f"{row['first_scatter_gbps']:.1f}" for row in rows.values())
    yield (
        f"The first load of an engine, a second after its start, went at {first} GB/s (seen once "
        "each, and not in the table)."
    )
