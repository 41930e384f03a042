"""Engines that share host memory are killed at random, and nobody ever reads a wrong byte.

    python benchmarks/arena_storm.py --path DIR [--minutes 10] [--engines 4] [--settle 70]

Each engine is a process that stores and loads chunks as fast as it can, in an arena that is much
too small for all of them, and checks every byte that it loads. Every moment one of them is killed
(SIGKILL) and another begins. In the end the arena must be whole: no slot that is held or filled by
nobody, every orphan used again after its time, every chunk what its name says. Exit status 1 if it
is not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from command_line import folder_in, parser_of, write_result

from lmkv._C import (
    ArenaError,
    ArenaReport,
    ArenaView,
    Engine,
    EngineOptions,
    arena_report,
    remove_arena,
    slab_bytes,
)

LAYERS, PAGE_BYTES = 4, 1000
BLOCK_BYTES = LAYERS * PAGE_BYTES
BLOCKS_PER_CHUNK = 4
SLAB_BYTES = slab_bytes(BLOCK_BYTES, BLOCKS_PER_CHUNK)
KEYS = 2000
SLOTS = 1200  # of the arena: some wait for their minute after a death
MOST_LOADS = 8
ORPHAN_SECONDS = 60  # csrc/arena/arena_slots.hpp
REPORT_SECONDS = 0.2
POISON = b"\xee" * BLOCK_BYTES


@functools.cache
def key_of(number: int) -> bytes:
    """Of a chunk."""
    return hashlib.sha256(b"%d" % number).digest()


def block_of(number: int, block: int) -> bytes:
    """What such a chunk's block holds, in every process."""
    return random.Random(number * BLOCKS_PER_CHUNK + block).randbytes(BLOCK_BYTES)


class PagedCache:
    """Block-outermost: all chunks' blocks, and those that are loaded into."""

    def __init__(self) -> None:
        self.blocks = (KEYS + MOST_LOADS) * BLOCKS_PER_CHUNK
        self._memory = ctypes.create_string_buffer(self.blocks * BLOCK_BYTES)
        self._base = ctypes.addressof(self._memory)
        for number in range(KEYS):
            for block in range(BLOCKS_PER_CHUNK):
                self.write(number * BLOCKS_PER_CHUNK + block, block_of(number, block))

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """Of EngineOptions."""
        return [
            (self._base + layer * PAGE_BYTES, BLOCK_BYTES, PAGE_BYTES) for layer in range(LAYERS)
        ]

    def read(self, block: int) -> bytes:
        """The bytes of a block."""
        return ctypes.string_at(self._base + block * BLOCK_BYTES, BLOCK_BYTES)

    def write(self, block: int, data: bytes) -> None:
        """Overwrite it."""
        ctypes.memmove(self._base + block * BLOCK_BYTES, data, BLOCK_BYTES)


def engine_over(root: str, arena: str, cache: PagedCache) -> Engine:
    """An engine that shares its host memory with all others here."""
    engine = Engine(
        EngineOptions(
            root=root, namespace=bytes(32), rank=0, segments=cache.segments,
            block_count=cache.blocks, block_tokens=16, blocks_per_chunk=BLOCKS_PER_CHUNK,
            host_memory=SLOTS * SLAB_BYTES, arena_directory=arena, free_space_floor=0,
        )
    )  # fmt: skip
    if error := engine.info()["arena_error"]:
        raise SystemExit(f"error: {error}")
    return engine


def work(root: str, arena: str, seed: int) -> NoReturn:
    """Until it is killed: stores and loads; a line of JSON now and then. 3: a wrong byte."""
    dice = random.Random(seed)
    cache = PagedCache()
    engine = engine_over(root, arena, cache)
    scheduler = ArenaView(
        directory=arena, slab_bytes=SLAB_BYTES, file_mode="private", namespace=bytes(32), ranks=1
    )
    prompt = [key_of(number) for number in range(KEYS)]
    free = [KEYS + slot for slot in range(MOST_LOADS)]
    loads: dict[int, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    next_report = 0.0
    while True:
        for completion in engine.poll():
            if completion.job not in loads:
                continue
            number, slot = loads.pop(completion.job)
            begin, missing = slot * BLOCKS_PER_CHUNK, bool(completion.failed_chunks)
            counts["not_loaded" if missing else "loaded"] += 1
            counts["from_memory"] += len(completion.memory_chunks)
            for block in range(BLOCKS_PER_CHUNK):
                wanted = POISON if missing else cache.read(number * BLOCKS_PER_CHUNK + block)
                if cache.read(begin + block) != wanted:
                    print(json.dumps({"wrong": number}), flush=True)
                    sys.exit(3)
            free.append(slot)
        number = min(int(dice.expovariate(3 / KEYS)), KEYS - 1)
        blocks = range(number * BLOCKS_PER_CHUNK, (number + 1) * BLOCKS_PER_CHUNK)
        if dice.random() < 0.3:
            stored = engine.store(key_of(number), 16 * number, list(blocks))
            counts["stores" if stored else "stores_dropped"] += 1
        elif free:
            slot = free.pop()
            begin = slot * BLOCKS_PER_CHUNK
            for block in range(begin, begin + BLOCKS_PER_CHUNK):
                cache.write(block, POISON)
            into = list(range(begin, begin + BLOCKS_PER_CHUNK))
            job = engine.load([(key_of(number), 16 * number, BLOCKS_PER_CHUNK, 0, into)])
            loads[job] = number, slot
        else:
            time.sleep(0.0002)
        if dice.random() < 0.1:
            counts["looked_up"] += scheduler.leading(prompt[number:])
        if time.monotonic() > next_report:
            next_report = time.monotonic() + REPORT_SECONDS
            print(json.dumps({**counts, "awaited": engine.stats()["chunks_awaited"]}), flush=True)


class Storm:
    """The engines' processes, and what became of them."""

    def __init__(self, root: str, arena: str, logs: Path, engines: int, seed: int) -> None:
        self._root, self._arena, self._logs = root, arena, logs
        self._dice = random.Random(seed)
        self._begun = 0
        self.totals: Counter[str] = Counter()
        self.failures: list[str] = []
        self._running = [self._begin() for _ in range(engines)]

    def _begin(self) -> tuple[subprocess.Popen[bytes], Path]:
        log = self._logs / str(self._begun)
        self._begun += 1
        words = [sys.executable, __file__, "--worker", self._root, self._arena, str(self._begun)]
        with log.open("wb") as output:
            return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT), log

    def kill_one(self) -> None:
        """And begin another in its place."""
        index = self._dice.randrange(len(self._running))
        self._end(*self._running[index])
        self._running[index] = self._begin()

    def end(self) -> None:
        """Kill all."""
        for process, log in self._running:
            self._end(process, log)

    def _end(self, process: subprocess.Popen[bytes], log: Path) -> None:
        process.kill()
        if process.wait() != -signal.SIGKILL:
            self.failures.append(f"an engine ended by itself: {log.read_text()[-500:]}")
        self.totals["killed"] += 1
        # The last line may be half written.
        lines = log.read_text().rpartition("\n")[0].splitlines()
        if lines and lines[-1].startswith("{"):
            self.totals.update(json.loads(lines[-1]))
        log.unlink()


def storm(
    root: str, arena: str, minutes: float, engines: int, seed: int, settle: float
) -> dict[str, Any]:
    """Run, and say what was seen; "failures" is empty if all is well."""
    dice = random.Random(seed)
    faults: Counter[str] = Counter()
    most_orphans = 0
    with tempfile.TemporaryDirectory() as logs:
        all_engines = Storm(root, arena, Path(logs), engines, seed)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and not all_engines.failures:
            time.sleep(dice.uniform(0.0, 1.0))
            all_engines.kill_one()
            if report := arena_report(arena, SLAB_BYTES, thorough=True):
                most_orphans = max(most_orphans, report.slots.orphaned)
                faults.update([report.fault] if report.fault else [])
        all_engines.end()
    failures = [*all_engines.failures, *(f"{fault} ({n} times)" for fault, n in faults.items())]
    last = after_the_storm(root, arena, failures, settle)
    return {
        "minutes": minutes,
        "engines": engines,
        "seed": seed,
        "slots": SLOTS,
        **all_engines.totals,
        "repairs": last.repairs,
        "most_orphans": most_orphans,
        "in_memory_at_the_end": last.slots.ready,
        "failures": failures,
    }


def after_the_storm(root: str, arena: str, failures: list[str], settle: float) -> ArenaReport:
    """An engine that comes then finds all in order; orphans, too, if there is time for them."""
    cache = PagedCache()
    engine = engine_over(root, arena, cache)
    deadline = time.monotonic() + settle
    while True:
        report = arena_report(arena, SLAB_BYTES, thorough=True)
        assert report is not None
        slots = report.slots
        is_settled = not (slots.orphaned or slots.filling)
        if is_settled or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    lost = slots.orphaned if settle > ORPHAN_SECONDS else 0
    if lost or slots.filling or slots.held or report.fault:
        failures.append(
            f"{slots.orphaned} orphans, {slots.filling} filled and {slots.held} held by nobody"
            f" {report.fault}"
        )
    in_memory = 0
    for number in range(KEYS):
        begin = KEYS * BLOCKS_PER_CHUNK
        into = list(range(begin, begin + BLOCKS_PER_CHUNK))
        engine.load([(key_of(number), 16 * number, BLOCKS_PER_CHUNK, 0, into)])
        engine.drain(10)
        (done,) = engine.poll()
        in_memory += len(done.memory_chunks)
        for block in range(BLOCKS_PER_CHUNK):
            wanted = cache.read(number * BLOCKS_PER_CHUNK + block)
            if not done.failed_chunks and cache.read(begin + block) != wanted:
                failures.append(f"chunk {number} is not what its name says")
    if in_memory < slots.ready // 2:  # loads of the others take slots, too
        failures.append(f"of {slots.ready} chunks in memory {in_memory} were found")
    engine.close()
    del engine
    try:
        remove_arena(arena, SLAB_BYTES)
    except ArenaError as error:
        failures.append(str(error))
    return report


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = parser_of("Kills engines that share host memory.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument(
        "--settle", type=float, default=ORPHAN_SECONDS + 10, help="seconds, in the end"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()

    with (
        folder_in(arguments.path, "storm") as root,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lmkv-storm-") as arena,
    ):
        result = storm(
            os.fspath(root),
            arena,
            arguments.minutes,
            arguments.engines,
            arguments.seed,
            arguments.settle,
        )
    write_result(result, arguments.json or "-")
    if result["failures"]:
        sys.exit("error: " + "; ".join(result["failures"][:5]))


if __name__ == "__main__":
    main()
