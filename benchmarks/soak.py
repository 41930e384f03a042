"""Stores, loads and touches over a disk with random faults: every byte checked, nothing leaked.

    python benchmarks/soak.py --path DIR [--minutes 10] [--seed N] [--json FILE]

Two engines of one process, one on io_uring and one on threads, share a directory and a paged KV
cache. Every few seconds each gets other faults at other rates, or none; at the end of such a phase
all that was asked for must have ended, and memory, descriptors, threads and slabs be what they were
before. Now and then an engine is closed with jobs on their way, and files are deleted. Exit status
1: a wrong byte, a lost job, counters that do not add up, or something that grows.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from command_line import folder_in, parser_of, write_result

from lmkv._C import (
    Completion,
    CompletionKind,
    Engine,
    EngineOptions,
    Faults,
    fault_engine,
    probe_root,
)

LAYERS, PAGE_BYTES = 4, 20_000
BLOCK_BYTES = LAYERS * PAGE_BYTES
BLOCKS_PER_CHUNK = 8
SLAB_BYTES = 4096 + -(-BLOCKS_PER_CHUNK * BLOCK_BYTES // 4096) * 4096
KEYS = 48
SLOTS = 8  # loads of one engine that are in flight at most
SLABS = 10
REQUESTS_PER_SECOND = 500  # of each engine
POISON = b"\xee" * PAGE_BYTES
NAMESPACE = bytes(32)
ENGINES = ("io_uring", "threads")
MOST_RSS_GROWTH_MIB = 16.0
STORES_THAT_ENDED = ("chunks_stored", "stores_already_present", "stores_failed", "gathers_failed")
FIRST_SECONDS = 2.0
FLAT = ("fds", "threads", "slabs_in_use")
PASSING_THREADS = ("iou-", "lmkv-pages")
KINDS = (  # of faults
    "eio", "enospc", "edquot", "estale", "erofs", "eagain", "eintr", "short", "truncate", "corrupt",
    "delay", "reorder", "hang",
)  # fmt: skip
OPERATIONS = ("open", "read", "write", "allocate", "touch", "close", "stat", "rename", "unlink")

Blocks = Sequence[int]


class PagedCache:
    """A layer-outermost KV cache: each key's blocks, which stay, and slots that are loaded into."""

    def __init__(self, engines: int) -> None:
        self.blocks = (KEYS + engines * SLOTS) * BLOCKS_PER_CHUNK
        self._memory = ctypes.create_string_buffer(self.blocks * BLOCK_BYTES)
        self._base = ctypes.addressof(self._memory)
        view = memoryview(self._memory).cast("B")
        for at in range(0, len(view), PAGE_BYTES):
            view[at : at + PAGE_BYTES] = os.urandom(PAGE_BYTES)

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """Of EngineOptions."""
        layer = self.blocks * PAGE_BYTES
        return [(self._base + i * layer, PAGE_BYTES, PAGE_BYTES) for i in range(LAYERS)]

    def _pages(self, blocks: Blocks) -> list[int]:
        return [base + block * PAGE_BYTES for block in blocks for base, _, _ in self.segments]

    def read(self, blocks: Blocks) -> bytes:
        """The bytes of these blocks."""
        return b"".join(ctypes.string_at(page, PAGE_BYTES) for page in self._pages(blocks))

    def poison(self, blocks: Blocks) -> None:
        """Overwrite them with what no key has."""
        for page in self._pages(blocks):
            ctypes.memmove(page, POISON, PAGE_BYTES)


class Key:
    """One chunk: 1 to BLOCKS_PER_CHUNK blocks whose bytes never change."""

    def __init__(self, number: int) -> None:
        self.digest = hashlib.sha256(b"%d" % number).digest()
        self.token_begin = 16 * number
        first = number * BLOCKS_PER_CHUNK
        self.blocks = list(range(first, first + 1 + number % BLOCKS_PER_CHUNK))


class Driver:
    """One engine, what it was asked for, and what came of it."""

    def __init__(
        self, name: str, root: Path, cache: PagedCache, index: int, seed: int,
        fail: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.name, self._root, self._cache, self._fail = name, root, cache, fail
        self._random = random.Random(seed)
        self.keys = [Key(i) for i in range(KEYS)]
        first = (KEYS + index * SLOTS) * BLOCKS_PER_CHUNK
        self._slots = [
            list(range(first + i * BLOCKS_PER_CHUNK, first + (i + 1) * BLOCKS_PER_CHUNK))
            for i in range(SLOTS)
        ]
        self.faults = Faults("", seed)
        self.totals: Counter[str] = Counter()
        self.spec = ""
        self._used = self.keys
        self._next = 0.0
        self._open()

    def _open(self) -> None:
        self.engine = fault_engine(
            EngineOptions(
                root=str(self._root), namespace=NAMESPACE, rank=0, segments=self._cache.segments,
                block_count=self._cache.blocks, block_tokens=16, blocks_per_chunk=BLOCKS_PER_CHUNK,
                host_memory=SLABS * SLAB_BYTES, io_engine=self.name, io_threads=2,
                request_bytes=128 << 10, free_space_floor=0,
                capacity=self._random.choice((0, 0, 12)) * SLAB_BYTES,
            ),
            self.faults,
        )  # fmt: skip
        self._asked: Counter[str] = Counter()  # and what was reported, since then
        self._before: dict[str, int] = self.engine.stats()
        self._stores: dict[int, set[CompletionKind]] = {}
        self._loads: dict[int, list[tuple[Key, int, list[int], list[int]]]] = {}

    def step(self) -> bool:
        """Take what has ended and ask for one thing more, if it is time; False if idle."""
        ended = self.engine.poll()
        for completion in ended:
            self._take(completion)
        now = time.monotonic()
        if now < self._next:
            return bool(ended)
        self._next = now + self._random.expovariate(REQUESTS_PER_SECOND)
        dice = self._random.random()
        if dice < 0.4 and len(self._stores) < SLABS:
            self._store(self._random.choice(self._used))
        elif dice < 0.9 and self._slots:
            self._load()
        elif dice < 0.95:
            self.engine.touch([(key.digest, key.token_begin) for key in self._used[:4]])
        else:
            return bool(ended)
        return True

    def _store(self, key: Key) -> None:
        self._asked["stores"] += 1
        if job := self.engine.store(key.digest, key.token_begin, key.blocks):
            self._stores[job] = {CompletionKind.GATHERED, CompletionKind.STORED}
        else:
            self._asked["stores_without_a_job"] += 1

    def _load(self) -> None:
        parts = []
        for _ in range(self._random.randint(1, min(3, len(self._slots)))):
            key, slot = self._random.choice(self._used), self._slots.pop()
            self._cache.poison(slot)
            first = self._random.randrange(len(key.blocks))
            wanted = key.blocks[first : self._random.randint(first + 1, len(key.blocks))]
            parts.append((key, first, wanted, slot))
        job = self.engine.load([
            (key.digest, key.token_begin, len(key.blocks), first, slot[: len(wanted)])
            for key, first, wanted, slot in parts
        ])  # fmt: skip
        self._asked["loads"] += len(parts)
        self._loads[job] = parts

    def _take(self, completion: Completion) -> None:
        if completion.kind is not CompletionKind.LOADED:
            expected = self._stores.get(completion.job, set())
            if completion.kind not in expected:
                self._fail(f"{self.name}: {completion.kind} of job {completion.job} unasked for")
            expected.discard(completion.kind)
            if completion.kind is CompletionKind.STORED:
                del self._stores[completion.job]
                self._asked["stores_well" if not completion.error else "stores_badly"] += 1
            return
        parts = self._loads.pop(completion.job, [])
        for i, (key, _, wanted, slot) in enumerate(parts):
            arrived = slot[: 0 if i in completion.failed_chunks else len(wanted)]
            self._asked["loads_badly" if i in completion.failed_chunks else "loads_well"] += 1
            if self._cache.read(arrived) != self._cache.read(wanted[: len(arrived)]):
                self._fail(f"{self.name}: wrong bytes of chunk {key.digest.hex()}")
            rest = slot[len(arrived) :]
            if self._cache.read(rest) != POISON * (len(rest) * LAYERS):
                self._fail(f"{self.name}: bytes beside chunk {key.digest.hex()} were changed")
            self._slots.append(slot)

    def quiesce(self, close: bool) -> None:
        """No more faults: all that was asked for has to end, and every counter to be right."""
        # Where earlier faults took a directory out of service, it fails until its next trial.
        faultless = not self.spec and not out_of_service(self._before)
        self.faults.change("")
        self.faults.release()
        if close:
            self.engine.close()
        if not self.engine.drain(60):
            self._fail(f"{self.name}: jobs are lost: {self.engine.stats()}")
        for completion in self.engine.poll():
            self._take(completion)
        if self._stores or self._loads:
            self._fail(f"{self.name}: {len(self._stores) + len(self._loads)} jobs never ended")
        stats, asked = self.engine.stats(), self._asked
        added = {
            "stores": sum(
                count
                for name, count in stats.items()
                if name.startswith("stores_dropped") or name in STORES_THAT_ENDED
            ),
            "stores_well": stats["chunks_stored"] + stats["stores_already_present"],
            "loads": stats["chunks_loaded"] + stats["loads_failed"] + stats["loads_cancelled"],
            "loads_well": stats["chunks_loaded"],
        }  # fmt: skip
        for name, count in added.items():
            if asked[name] != count:
                self._fail(f"{self.name}: {name}: {asked[name]} by count, {count} by {stats}")
        for gauge in ("jobs_in_flight", "slabs_in_use", "load_bytes_in_flight",
                      "store_bytes_in_flight"):  # fmt: skip
            if stats[gauge]:
                self._fail(f"{self.name}: {gauge} is {stats[gauge]} with nothing to do")
        since = {name: count - self._before[name] for name, count in stats.items()}
        if faultless and not close and (
            since["stores_failed"]
            or since["loads_failed"]
            != since["chunks_missing"] + since["chunks_bad"] + since["loads_refused"]
        ):  # fmt: skip
            self._fail(f"{self.name}: failures without a fault: {since}")
        self.totals.update({name: since[name] for name in (
            "chunks_stored", "stores_already_present", "stores_failed", "stores_dropped",
            "stores_dropped_full", "chunks_loaded", "memory_hits", "loads_failed", "chunks_missing",
            "chunks_bad", "loads_refused", "loads_timed_out",
            "chunks_touched", "touches_failed", "chunks_evicted",
        )})  # fmt: skip
        self._before = stats
        if close:
            self.totals["restarts"] += 1
            self._open()

    def change(self) -> None:
        """Other faults, or none, and other chunks: what is in use is never evicted."""
        self._used = self._random.sample(self.keys, KEYS // 3)
        self.spec = random_spec(self._random)
        self.faults.change(self.spec)


def out_of_service(stats: Mapping[str, int]) -> bool:
    """Whether a directory is no longer asked after failures in a row."""
    return any(stats.get(f"{way}_out_of_service") for way in ("loads", "stores"))


def random_spec(dice: random.Random) -> str:
    """No faults, one kind, or several, at rates from one in a thousand to most."""
    faults = []
    for kind in dice.sample(KINDS, dice.choice((0, 1, 1, 2, 4, len(KINDS)))):
        rate = 10 ** dice.uniform(-3, -0.3)
        if kind in ("eagain", "eintr", "short", "reorder"):
            rate = dice.uniform(0.1, 0.9)
        elif kind == "hang":
            rate = 10 ** dice.uniform(-3.5, -2)
        text = f"{kind}:{dice.randint(1, 50)}ms" if kind == "delay" else kind
        bytes_only = kind in ("short", "truncate", "corrupt")
        if not bytes_only and dice.random() < 0.4:
            text = f"{dice.choice(OPERATIONS)}.{text}"
        faults.append(f"{text}:{rate:.4f}")
    return ",".join(faults)


def gauges(engines: Sequence[Engine]) -> dict[str, float]:
    """What is held: memory, descriptors, threads, slabs.

    Threads but for those that end by themselves: the kernel's I/O workers, and the one that brings
    a slab pool's pages, which is gone once all slabs have been in use.
    """
    threads = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            threads += not (task / "comm").read_text().startswith(PASSING_THREADS)
        except OSError:  # it has just ended
            continue
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20),
        "fds": len(os.listdir("/proc/self/fd")) - 1,  # its own
        "threads": threads,
        "slabs_in_use": sum(engine.stats()["slabs_in_use"] for engine in engines),
    }


def delete_some(root: Path, dice: random.Random) -> None:
    """Chunk files, as another engine's eviction does."""
    for path in root.glob("v1/*/r0/*/*.kv"):
        if dice.random() < 0.08:
            path.unlink(missing_ok=True)


def soak(root: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Run, and say what was seen; "failures" is empty if all is well."""
    failures: list[str] = []
    dice = random.Random(seed)
    names = [name for name in ENGINES if not probe_root(str(root), name).error]
    cache = PagedCache(len(names))
    drivers = [
        Driver(name, root, cache, i, seed + i, failures.append) for i, name in enumerate(names)
    ]
    samples: list[dict[str, float]] = []
    temporaries = 0
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end and not failures:
        phase_end = time.monotonic() + min(3.0 + dice.random() * 2, 60 * minutes / 6)
        disturb = time.monotonic()
        while time.monotonic() < phase_end:
            busy = [driver.step() for driver in drivers]
            if not any(busy):
                time.sleep(0.0005)
            if time.monotonic() > disturb:
                disturb += 0.7
                delete_some(root, dice)
                for driver in drivers:
                    driver.faults.release()
        for driver in drivers:
            out = out_of_service(driver.engine.stats())
            driver.quiesce(close=out or dice.random() < 0.2)
        samples.append(settled([driver.engine for driver in drivers], samples))
        left = [file for file in root.glob("v1/*/r0/*/*") if file.suffix != ".kv"]
        temporaries += len(left)
        injected = Counter[str]()
        for driver in drivers:
            injected.update(driver.faults.counts())
        kept = sum(n for name, n in injected.items() if name.startswith("unlink."))
        if temporaries > kept:
            failures.append(f"{temporaries} temporary files are left, {kept} unlinks had faults")
        for path in left:  # as a scan does after an hour
            path.unlink()
        for driver in drivers:
            driver.change()
    return {
        "minutes": minutes,
        "seed": seed,
        "phases": len(samples),
        "engines": {driver.name: dict(driver.totals) for driver in drivers},
        "injected": dict(sorted(injected.items())),
        "temporaries_left": temporaries,
        **judged(samples, failures),
        "failures": failures,
    }


def settled(
    engines: Sequence[Engine], earlier: Sequence[dict[str, float]], flat: Sequence[str] = FLAT
) -> dict[str, float]:
    """The gauges, when no housekeeper's scan has a directory open: those that come first, of which
    nobody knows, are the least of a while.
    """
    now = gauges(engines)
    deadline = time.monotonic() + (5.0 if earlier else FIRST_SECONDS)
    while time.monotonic() < deadline:
        if earlier and all(now[name] == earlier[0][name] for name in flat):
            break
        time.sleep(0.01)
        then = gauges(engines)
        now = then if earlier else min(now, then, key=lambda found: found["fds"])
    return now


def judged(
    samples: Sequence[dict[str, float]],
    failures: list[str],
    flat: Sequence[str] = FLAT,
    most_growth: float = MOST_RSS_GROWTH_MIB,
) -> dict[str, Any]:
    """Ranges of the gauges; what is not ``flat`` is a failure, as is memory that grows by more."""
    for name in flat:
        seen = {sample[name] for sample in samples}
        if len(seen) != 1:
            failures.append(f"{name} went from {min(seen):.0f} to {max(seen):.0f}")
    # Memory grows at first, when slabs and the allocator's arenas are first used.
    rss = [sample["rss_mib"] for sample in samples]
    warm = rss[len(rss) // 4 :]
    third = max(1, len(warm) // 3)
    growth = statistics.median(warm[-third:]) - statistics.median(warm[:third])
    if growth > most_growth:
        failures.append(f"memory grew by {growth:.1f} MiB")
    return {
        "rss_mib": {"first": rss[0], "max": max(rss), "last": rss[-1], "growth": growth},
        **{name: sorted({sample[name] for sample in samples}) for name in FLAT},
    }


def main() -> None:
    """See the module."""
    parser = parser_of("Stores and loads over a disk with faults.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()

    with folder_in(arguments.path, "soak") as root:
        result = soak(root, arguments.minutes, arguments.seed)
    write_result(result, arguments.json or "-")
    if result["failures"]:
        sys.exit("error: " + "; ".join(result["failures"][:5]))


if __name__ == "__main__":
    main()
