"""How many bytes in flight a disk wants: the fewest with which it is as fast as it gets."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmkv.bench.io import MIB, Settings, Workload
from lmkv.tuning import Depths

DEPTHS_MIB = (4, 8, 16, 32, 64, 128)
CHUNK_MIB = 6

# More in flight than needed makes loads wait behind stores, and holds slabs.
GOOD_ENOUGH = 0.97


def calibrate(
    settings: Settings,
    *,
    depths_mib: Sequence[int] = DEPTHS_MIB,
    bytes_total: int = 1 << 30,
    rounds: int = 5,
    each: Callable[[dict[str, Any]], object] | None = None,
) -> Depths:
    """Store and load with every depth in turn, ``rounds`` times, and choose by the medians.

    ``each`` gets ``{"depth_mib", "store_gbps", "load_gbps"}``. Raises ConfigError for a directory
    that cannot be used. Blocks for minutes.
    """
    work = Workload(settings, CHUNK_MIB * MIB, max(2, bytes_total // (CHUNK_MIB * MIB)))
    seconds: dict[str, dict[int, list[float]]] = {
        way: {depth: [] for depth in depths_mib} for way in ("store", "load")
    }
    work.root.mkdir(parents=True)
    try:
        for _ in range(rounds):
            for depth in depths_mib:
                size = depth * MIB
                work.settings = replace(settings, load_depth=size, store_depth=size)
                seconds["store"][depth].append(work.store().seconds)
                seconds["load"][depth].append(work.load().seconds)
                shutil.rmtree(work.root / "lmkv" / "v1", ignore_errors=True)
    finally:
        work.remove()
    gbps = {
        way: {
            depth: work.bytes_total / statistics.median(times) / 1e9
            for depth, times in by_depth.items()
        }
        for way, by_depth in seconds.items()
    }
    if each is not None:
        for depth in depths_mib:
            each({"depth_mib": depth} | {f"{way}_gbps": gbps[way][depth] for way in gbps})
    return Depths(
        load_depth=least_depth(gbps["load"]) * MIB, store_depth=least_depth(gbps["store"]) * MIB
    )


def least_depth(gbps: Mapping[int, float]) -> int:
    """The smallest depth that is about as fast as the fastest."""
    enough = GOOD_ENOUGH * max(gbps.values())
    return min(depth for depth, rate in gbps.items() if rate >= enough)
