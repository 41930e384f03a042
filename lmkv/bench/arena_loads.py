"""Loads from an arena against memcpy, by several processes at once, interleaved in one run.

Each process has an engine and a paged KV cache of its own. In turn with its loads, and with those
of the others, it copies as many bytes into the same cache by one memcpy. All pages were touched
before, at the latest in a round that is not counted.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

from lmkv._C import Engine
from lmkv.bench.arena_chunks import PATIENCE_S, Chunks, LoadedChunk
from lmkv.bench.memory import HostMemory

TIMES = 8  # all chunks are moved in a round: once would be over before all processes run
SETTLE_SECONDS = 1.0  # from an engine's start: it maps what lies in the arena meanwhile
LOOK_SECONDS = 0.5  # without an end, until an engine is polled again, as it expects


def measure_loads(chunks: Chunks, folder: Path, processes: int, rounds: int) -> dict[str, Any]:
    """Of one process among so many: GB/s of loads, of memcpy, and how they compare."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes, timeout=PATIENCE_S)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin_worker, initargs=(barrier,)
    ) as pool:
        workers = [
            pool.submit(_work, chunks, folder, rounds, number) for number in range(processes)
        ]
        errors = [error for worker in workers if (error := worker.exception())]
        if errors:  # that of the process which made the others give up
            raise min(errors, key=lambda error: isinstance(error, BrokenBarrierError))
        by_process = [worker.result() for worker in workers]
    # Each round's, by the mean of its processes' times.
    scatters, copies = (
        [
            1 / statistics.mean(one[number][way] for one in by_process)
            for number in range(rounds + 1)
        ]
        for way in ("scatter", "memcpy")
    )
    ratios = [a / b for a, b in zip(scatters[1:], copies[1:], strict=True)]
    return {
        "scatter_gbps": statistics.median(scatters[1:]),
        "scatter_gbps_range": [min(scatters[1:]), max(scatters[1:])],
        "memcpy_gbps": statistics.median(copies[1:]),
        "memcpy_gbps_range": [min(copies[1:]), max(copies[1:])],
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "first_scatter_gbps": scatters[0],
    }


_barrier: Barrier  # of a worker's process


def _begin_worker(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - it can be handed to a process that begins, and not to a call
    _barrier = barrier


def _work(chunks: Chunks, folder: Path, rounds: int, seed: int) -> list[dict[str, float]]:
    """Seconds per GB of each round; in the first this process loads for the first time."""
    try:
        return _measure_rounds(chunks, folder, rounds, random.Random(seed))
    except BaseException:
        _barrier.abort()  # the others need not wait
        raise


def _measure_rounds(
    chunks: Chunks, folder: Path, rounds: int, dice: random.Random
) -> list[dict[str, float]]:
    size, blocks = chunks.bytes_total, chunks.count * chunks.blocks
    cache, source = HostMemory(2 * size), HostMemory(size)
    engine = chunks.engine(folder, cache)
    time.sleep(SETTLE_SECONDS)
    found = []
    for number in range(rounds + 1):
        times = TIMES if number else 1
        targets = [chunks.load_into(dice.sample(range(2 * blocks), blocks)) for _ in range(times)]
        _barrier.wait()
        copied = sum(cache.copy_seconds("scatter", source.address, size) for _ in targets)
        _barrier.wait()
        loaded = sum(_load_seconds(engine, target) for target in targets)
        gigabytes = times * size / 1e9
        found.append({"scatter": loaded / gigabytes, "memcpy": copied / gigabytes})
    if engine.stats()["bytes_loaded"]:
        raise RuntimeError("a chunk was read from its file: not only memory was measured")
    return found


def _load_seconds(engine: Engine, target: list[LoadedChunk]) -> float:
    """From the call to its completion in hand. It is slept for: a thread that polls all the time
    would take a core, and memcpy needs only one for each process.
    """
    begin = time.perf_counter()
    engine.load(target)
    while not (ended := engine.poll()):
        engine.drain(LOOK_SECONDS)
    seconds = time.perf_counter() - begin
    if len(ended) != 1 or len(ended[0].memory_chunks) != len(target):
        raise RuntimeError("a chunk was not in memory: not only memory was measured")
    return seconds
