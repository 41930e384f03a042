"""Stores and loads through the whole core against fio, interleaved in one run.

Chunks go slab -> file -> slab with checksums, by a device that copies nothing. fio does the same
file sizes, as many files and as many bytes in flight, with O_DIRECT where lmkv uses it. With faults
injected into lmkv's disk (not into fio's), what fails is counted, and rates are those of the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from lmkv._C import CompletionKind, Engine, EngineOptions, Faults, bench_engine
from lmkv.errors import ConfigError

MIB = 1 << 20
CHUNKS_MIB = (1, 6, 32)
COUNTED_FROM_MIB = 6  # the headline is that of chunks from here on
BLOCKS_PER_CHUNK = 16
PAGE = 4096
PATIENCE_S = 1.0  # with nothing ended for so long, what hangs by an injected fault is let go


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one measurement is made with. Sizes in bytes."""

    path: Path
    io_engine: str = "auto"
    io_threads: int = 1
    request_bytes: int = MIB
    load_depth: int = 64 * MIB
    store_depth: int = 32 * MIB
    host_memory: int = 1 << 30
    fault: str = ""  # as lmkv._C.Faults takes it; empty: none, and a failure ends the measurement


class Workload:
    """``count`` chunks whose files, header page included, have ``chunk_bytes``."""

    def __init__(self, settings: Settings, chunk_bytes: int, count: int) -> None:
        self.settings, self.chunk_bytes, self.count = settings, chunk_bytes, count
        self.root = settings.path / f"lmkv-bench-{os.getpid()}"
        self._number = 0
        self._keys: list[bytes] = []
        self._faults: Faults | None = None  # of the engine that was made last
        self.injected = Counter[str]()

    @property
    def bytes_total(self) -> int:
        """Of all files."""
        return self.chunk_bytes * self.count

    def engine(self) -> Engine:
        """A fresh engine: nothing is in its memory. With faults, if there are to be any."""
        settings, block = self.settings, (self.chunk_bytes - PAGE) // BLOCKS_PER_CHUNK
        self._faults = Faults(settings.fault, self._number) if settings.fault else None
        return bench_engine(
            EngineOptions(
                root=str(self.root / "lmkv"),
                namespace=bytes(32),
                rank=0,
                segments=[(PAGE, block, block)],  # of memory that nobody looks at
                block_count=BLOCKS_PER_CHUNK,
                block_tokens=16,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
                host_memory=settings.host_memory,
                io_engine=settings.io_engine,
                io_threads=settings.io_threads,
                request_bytes=settings.request_bytes,
                load_depth=settings.load_depth,
                store_depth=settings.store_depth,
                free_space_floor=0,
            ),
            self._faults,
        )

    def store(self) -> Run:
        """From the first store to the last file in its place."""
        self._number += 1
        self._keys = [
            hashlib.sha256(f"{self._number} {i}".encode()).digest() for i in range(self.count)
        ]
        engine = self.engine()
        slabs = engine.stats()["slabs_total"]
        slots = slabs - max(1, slabs // 4)  # of which stores may hold so many
        blocks = list(range(BLOCKS_PER_CHUNK))
        jobs = Jobs(engine, CompletionKind.STORED, self._faults)
        with Stopwatch() as watch:
            for key in self._keys:
                while jobs.in_flight >= slots:
                    jobs.wait()
                if engine.store(key, 0, blocks):
                    jobs.in_flight += 1
                else:
                    jobs.dropped()
            while jobs.in_flight:
                jobs.wait()
        return self._run(watch, jobs)

    def load(self) -> Run:
        """From the first load to the last chunk verified."""
        engine = self.engine()
        blocks = list(range(BLOCKS_PER_CHUNK))
        jobs = Jobs(engine, CompletionKind.LOADED, self._faults)
        with Stopwatch() as watch:
            for key in self._keys:
                engine.load([(key, 0, BLOCKS_PER_CHUNK, 0, blocks)])
                jobs.in_flight += 1
            while jobs.in_flight:
                jobs.wait()
        if engine.stats()["memory_hits"]:
            raise RuntimeError("a chunk was in memory: nothing was measured")
        return self._run(watch, jobs)

    def _run(self, watch: Stopwatch, jobs: Jobs) -> Run:
        engine = jobs.engine
        # Random bytes in every page of every store, and looking for what has ended, thousands of
        # times a second, are the measurement's, not an engine's work.
        own = int(engine.info()["bench_cpu_microseconds"]) / 1e6 + jobs.cpu_seconds
        checksums = engine.stats()["checksum_microseconds"] / 1e6
        self.injected.update(jobs.close())
        return Run(watch.seconds, watch.cpu_seconds - own, checksums, jobs.failed)

    def remove(self) -> None:
        """All files."""
        shutil.rmtree(self.root, ignore_errors=True)


class Stopwatch:
    """Wall clock and this process's CPU time, the kernel's I/O workers included."""

    seconds = 0.0
    cpu_seconds = 0.0

    def __enter__(self) -> Stopwatch:  # noqa: PYI034 - typing.Self is Python 3.11's
        self._cpu = self._used()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        self.cpu_seconds = self._used() - self._cpu

    @staticmethod
    def _used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True, slots=True)
class Run:
    """One way, once: wall clock and CPU seconds, the latter without the measurement's own work,
    the threads' time in checksums, and how many chunks an injected fault stopped.
    """

    seconds: float
    cpu_seconds: float
    checksum_seconds: float
    failed: int


class Jobs:
    """Jobs of one engine that end with ``kind``."""

    def __init__(self, engine: Engine, kind: CompletionKind, faults: Faults | None) -> None:
        self.engine, self._kind, self._faults = engine, kind, faults
        self._last = time.monotonic()
        self.in_flight = 0
        self.failed = 0
        self.cpu_seconds = 0.0  # of looking whether something has ended

    def wait(self) -> None:
        """Take what has ended since the last look; a little later if nothing has."""
        cpu = time.thread_time()
        self._wait()
        self.cpu_seconds += time.thread_time() - cpu

    def _wait(self) -> None:
        ended = 0
        for completion in self.engine.poll():
            if completion.error and self._faults is None:
                raise RuntimeError(completion.error)
            if completion.kind is self._kind:
                ended += 1
                self.failed += bool(completion.error)
        self.in_flight -= ended
        now = time.monotonic()
        if ended:
            self._last = now
            return
        if self._faults is not None and now - self._last > PATIENCE_S:
            self._faults.release()
            self._last = now
        time.sleep(0.0005)

    def dropped(self) -> None:
        """Count a store that the engine did not take, as after an injected ENOSPC."""
        if self._faults is None:
            raise RuntimeError(f"a store was dropped: {self.engine.stats()}")
        self.failed += 1

    def close(self) -> dict[str, int]:
        """Close the engine, a touch of which may hang still, and say which faults there were."""
        if self._faults is not None:
            self._faults.change("")
            self._faults.release()
        self.engine.close()
        return {} if self._faults is None else self._faults.counts()


class Fio:
    """fio over files of the same size and number, with the same bytes in flight."""

    def __init__(self, workload: Workload, direct: bool) -> None:
        self._workload, self._direct = workload, direct
        self._folder = workload.root
        self._number = 0

    def store(self) -> float:
        """Seconds."""
        self._number += 1
        self._folder = self._workload.root / f"fio{self._number}"
        self._folder.mkdir()
        return self._run("write", self._workload.settings.store_depth)

    def load(self) -> float:
        """Seconds, of what `store` wrote."""
        return self._run("read", self._workload.settings.load_depth)

    def _run(self, kind: str, depth_bytes: int) -> float:
        work = self._workload
        request = min(work.settings.request_bytes, work.chunk_bytes)
        command = [
            "fio", "--name=lmkv", f"--directory={self._folder}", f"--rw={kind}",
            f"--bs={request}", f"--filesize={work.chunk_bytes}", f"--nrfiles={work.count}",
            f"--size={work.bytes_total}", f"--iodepth={max(1, depth_bytes // request)}",
            "--ioengine=io_uring", "--fixedbufs", "--registerfiles",
            f"--direct={int(self._direct)}",
            "--file_service_type=sequential", f"--openfiles={work.count}", "--randrepeat=0",
            "--refill_buffers", "--invalidate=1", "--output-format=json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"fio failed: {done.stderr or done.stdout}")
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][kind]
        if job["io_bytes"] != work.bytes_total:
            raise RuntimeError(f"fio moved {job['io_bytes']} bytes, not {work.bytes_total}")
        return float(job["runtime"]) / 1e3


def measure(
    settings: Settings,
    *,
    chunks_mib: Iterable[int] = CHUNKS_MIB,
    bytes_total: int = 1 << 30,
    rounds: int,
    each: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """GB/s (1e9 bytes) of lmkv and of fio, by the size of chunks; medians, ratios and spread.

    In every round fio and lmkv store, then load; who goes first alternates. Fresh files and bytes
    in every round, and none removed before the last: ext4 makes files slowly where some have just
    gone. "failed" counts the chunks that an injected fault stopped, which count for no
    rate. Raises ConfigError without fio, for a directory that cannot be used or for a fault that
    cannot be. Blocks for minutes.
    """
    if shutil.which("fio") is None:
        raise ConfigError("fio is needed, to compare with: install the package fio")
    rows: list[dict[str, Any]] = []
    for mib in chunks_mib:
        rows.append(_measure_size(settings, mib, max(2, bytes_total // (mib * MIB)), rounds))
        if each is not None:
            each(rows[-1])
    counted = [row for row in rows if row["chunk_mib"] >= COUNTED_FROM_MIB] or rows
    result: dict[str, Any] = {"rounds": rounds}
    for way in ("store", "load"):
        result[way] = min((row[way] for row in counted), key=itemgetter("ratio"))
    cpu = max(row["cpu_s_per_gb"] for row in counted)
    result["failed"] = {way: sum(row[way]["failed"] for row in rows) for way in ("store", "load")}
    if settings.fault:
        result["fault"] = settings.fault
        result["injected"] = dict(sum((row["injected"] for row in rows), Counter[str]()))
    return result | {"by_chunk_mib": {str(r["chunk_mib"]): r for r in rows}, "cpu_s_per_gb": cpu}


def _measure_size(settings: Settings, mib: int, count: int, rounds: int) -> dict[str, Any]:
    work = Workload(settings, mib * MIB, count)
    work.root.mkdir(parents=True)
    runs: dict[str, list[Run]] = {"store": [], "load": []}
    fio_seconds: dict[str, list[float]] = {"store": [], "load": []}
    cpu: list[float] = []
    try:
        probe = work.engine()
        info = probe.info()
        probe.close()  # it has done nothing that could hang
        fio = Fio(work, info["direct_io"] == "on")
        for number in range(rounds):
            spent = 0.0
            for name, mine, theirs in (
                ("store", work.store, fio.store),
                ("load", work.load, fio.load),
            ):
                if number % 2:
                    fio_seconds[name].append(theirs())
                runs[name].append(mine())
                spent += runs[name][-1].cpu_seconds
                if not number % 2:
                    fio_seconds[name].append(theirs())
            cpu.append(spent / (2 * work.bytes_total / 1e9))
    finally:
        work.remove()
    row: dict[str, Any] = {
        "chunk_mib": mib,
        "files": count,
        "io_engine": info["io_engine"],
        "direct_io": info["direct_io"],
        "cpu_s_per_gb": statistics.median(cpu),
        "injected": work.injected,
    }
    for name in ("store", "load"):
        rates = [(count - r.failed) * work.chunk_bytes / r.seconds / 1e9 for r in runs[name]]
        fio_rates = [work.bytes_total / took / 1e9 for took in fio_seconds[name]]
        ratios = [a / b for a, b in zip(rates, fio_rates, strict=True)]
        row[name] = {
            "gbps": statistics.median(rates),
            "fio_gbps": statistics.median(fio_rates),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "gbps_range": [min(rates), max(rates)],
            "fio_gbps_range": [min(fio_rates), max(fio_rates)],
            "cpu_s_per_gb": statistics.median(r.cpu_seconds for r in runs[name])
            / (work.bytes_total / 1e9),
            # Of the time that the whole took, how long one thread was busy with them.
            "checksum_share": statistics.median(r.checksum_seconds / r.seconds for r in runs[name]),
            "failed": sum(r.failed for r in runs[name]),
        }
    return row
