"""What host memory that engines share costs: attaching to it, looking up, and loading from it.

The arena is one of its own, in a directory that is made for it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmkv._C import ArenaView
from lmkv.bench.arena_chunks import KIB, Chunks, key_of
from lmkv.bench.arena_loads import measure_loads
from lmkv.bench.memory import HostMemory
from lmkv.errors import ConfigError

MIB = 1 << 20
MEMORY = Path("/dev/shm")
PROCESSES = (1, 2, 4)
KEYS = 512  # of a lookup
LOOKUPS = 2000
TARGET = 0.90  # of memcpy


def measure(
    *,
    moved_bytes: int = 256 * MIB,
    rounds: int = 9,
    processes: Sequence[int] = PROCESSES,
    each: Callable[[int, dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Milliseconds, nanoseconds and GB/s (1e9 bytes); medians of ``rounds``, and ranges.

    ``each`` sees every number of processes and its row as it is done. ``ratio`` is the worst of
    them. Blocks for seconds. Raises ConfigError where there is no room for the arena.
    """
    prompt = Chunks.of_a_prompt(moved_bytes)
    small = Chunks(layers=1, page_bytes=4 * KIB, blocks=1, count=KEYS)
    _check_room(2 * (prompt.host_memory + small.host_memory))  # arena and files
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="lmkv-bench-") as name:
        folder = Path(name)
        prompt.store(folder)
        small.store(folder)
        result: dict[str, Any] = {
            "rounds": rounds,
            "target": TARGET,
            "cores": len(os.sched_getaffinity(0)),
            "chunk_bytes": prompt.slab_bytes,
            "bytes_moved": prompt.bytes_total,
            "attach_ms": _attach_ms(prompt, folder, rounds),
            **_lookup(small, folder),
        }
        rows = {}
        for count in processes:
            rows[f"{count}"] = measure_loads(prompt, folder, count, rounds)
            if each is not None:
                each(count, rows[f"{count}"])
    return result | {"by_processes": rows, "ratio": min(row["ratio"] for row in rows.values())}


def _check_room(needed: int) -> None:
    try:
        free = shutil.disk_usage(MEMORY).free
    except OSError as error:
        raise ConfigError(f"{MEMORY} cannot be used: {error.strerror}") from error
    if free < needed:
        raise ConfigError(
            f"{MEMORY} has room for {free / MIB:.0f} MiB, and {needed / MIB:.0f} MiB are needed"
        )


def _attach_ms(chunks: Chunks, folder: Path, rounds: int) -> dict[str, Any]:
    """Starts of an engine whose arena is there, of one with memory of its own, and of a view."""
    cache = HostMemory(chunks.blocks * chunks.block_bytes)
    make: dict[str, Callable[[], object]] = {
        "arena": lambda: chunks.engine(folder, cache),
        "own": lambda: chunks.engine(folder, cache, is_shared=False),
        "view": lambda: chunks.view(folder),
    }
    times: dict[str, list[float]] = {name: [] for name in make}
    for number in range(rounds + 1):
        for name, one in make.items():
            begin = time.perf_counter()
            made = one()
            seconds = time.perf_counter() - begin
            del made
            if number:
                times[name].append(seconds * 1e3)
    found: dict[str, Any] = {name: statistics.median(taken) for name, taken in times.items()}
    more = [arena - own for arena, own in zip(times["arena"], times["own"], strict=True)]
    return found | {"more": statistics.median(more), "more_range": [min(more), max(more)]}


def _lookup(chunks: Chunks, folder: Path) -> dict[str, Any]:
    """Of keys that are there, all asked for at once; and whole calls for one that is not, since a
    lookup ends at the first of those.
    """
    view, keys = chunks.view(folder), chunks.keys
    absent = [[key_of(f"absent {number}")] for number in range(LOOKUPS)]
    times = {
        "present": [_lookup_ns(view, keys, len(keys)) for _ in range(LOOKUPS)],
        "absent": [_lookup_ns(view, one, 0) for one in absent],
    }
    whole = statistics.median(times["present"])
    return {
        "lookup_ns_per_key": {
            "present": whole / len(keys),
            "absent": statistics.median(times["absent"]),
        },
        "lookup_512_us": {
            "p50": whole / 1e3,
            "p99": statistics.quantiles(times["present"], n=100)[-1] / 1e3,
        },
    }


def _lookup_ns(view: ArenaView, keys: list[bytes], wanted: int) -> int:
    begin = time.perf_counter_ns()
    found = view.leading(keys)
    taken = time.perf_counter_ns() - begin
    if found != wanted:
        raise RuntimeError(f"{found} chunks were found, not {wanted}")
    return taken
