"""Store and load through the whole core, both I/O engines in turn: GB/s, medians and spread.

    python benchmarks/core_throughput.py DIR [--chunks 40] [--rounds 5] [--direct-io off]

Every round stores fresh random bytes and loads them with a new engine (so nothing is in host
memory), checksums on, O_DIRECT where the filesystem takes it and it is not off; the engines
alternate within a round, since disks drift. GB are 1e9 bytes of KV. The KV cache is that of
SmolLM2-135M in float32 with blocks of 32 tokens: 30 layers of 48 KiB, chunks of 11.8 MB.
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lmkv._C import Engine, EngineOptions

LAYERS, PAGE_BYTES = 30, 48 << 10
BLOCK_TOKENS, BLOCKS_PER_CHUNK = 32, 8
CHUNK_BYTES = LAYERS * PAGE_BYTES * BLOCKS_PER_CHUNK
ENGINES = ("io_uring", "threads")


class PagedCache:
    """A layer-outermost KV cache in host memory, full of random bytes."""

    def __init__(self, chunks: int) -> None:
        self.blocks = chunks * BLOCKS_PER_CHUNK
        self._memory = ctypes.create_string_buffer(LAYERS * self.blocks * PAGE_BYTES)
        self.refresh()

    def refresh(self) -> None:
        """Fill with new random bytes."""
        view = memoryview(self._memory).cast("B")
        step = 1 << 20
        for at in range(0, len(view), step):
            view[at : at + step] = os.urandom(min(step, len(view) - at))

    def engine(self, root: Path, io_engine: str, direct_io: str) -> Engine:
        """A new engine over this memory."""
        base, layer = ctypes.addressof(self._memory), self.blocks * PAGE_BYTES
        return Engine(
            EngineOptions(
                root=str(root),
                namespace=bytes(32),
                rank=0,
                segments=[(base + i * layer, PAGE_BYTES, PAGE_BYTES) for i in range(LAYERS)],
                block_count=self.blocks,
                block_tokens=BLOCK_TOKENS,
                blocks_per_chunk=BLOCKS_PER_CHUNK,
                host_memory=(self.blocks // BLOCKS_PER_CHUNK + 2) * (CHUNK_BYTES + (64 << 10)),
                io_engine=io_engine,
                direct_io=direct_io,
            )
        )


def finish(engine: Engine) -> None:
    """Wait for all jobs; anything but success ends the benchmark."""
    if not engine.drain(600):
        sys.exit("error: the disk took more than ten minutes")
    for completion in engine.poll():
        if completion.error:
            sys.exit(f"error: {completion.error}")
    engine.close()


def one_round(
    cache: PagedCache, root: Path, io_engine: str, direct_io: str, chunks: int
) -> tuple[float, float]:
    """GB/s of storing and of loading."""
    keys = [os.urandom(32) for _ in range(chunks)]
    ids = [list(range(i * BLOCKS_PER_CHUNK, (i + 1) * BLOCKS_PER_CHUNK)) for i in range(chunks)]
    engine = cache.engine(root, io_engine, direct_io)
    start = time.perf_counter()
    for key, blocks in zip(keys, ids, strict=True):
        engine.store(key, 0, blocks)
    finish(engine)
    stored = time.perf_counter() - start

    engine = cache.engine(root, io_engine, direct_io)
    start = time.perf_counter()
    pairs = zip(keys, ids, strict=True)
    engine.load([(key, 0, BLOCKS_PER_CHUNK, 0, blocks) for key, blocks in pairs])
    finish(engine)
    loaded = time.perf_counter() - start
    shutil.rmtree(root / "v1")
    return chunks * CHUNK_BYTES / stored / 1e9, chunks * CHUNK_BYTES / loaded / 1e9


def spread_of(rates: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Store and load through the whole core.")
    parser.add_argument("directory", type=Path, help="a folder is made in it, and removed again")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--direct-io", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    root = arguments.directory.absolute() / f"lmkv-benchmark-{os.getpid()}"
    cache = PagedCache(arguments.chunks)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
    try:
        for _ in range(arguments.rounds):
            cache.refresh()
            for name in ENGINES:
                rates[name].append(
                    one_round(cache, root, name, arguments.direct_io, arguments.chunks)
                )
    finally:
        shutil.rmtree(root, ignore_errors=True)

    names = ("store_gbps", "load_gbps")
    results = {
        engine: {name: spread_of([row[i] for row in rows]) for i, name in enumerate(names)}
        for engine, rows in rates.items()
    }
    for name, row in results.items():
        for what, spread in row.items():
            low, high = spread["min"], spread["max"]
            print(f"{name:9} {what:10} {spread['median']:5.2f}  ({low:.2f} to {high:.2f})")
    if arguments.json is not None:
        about = {
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "chunk_bytes": CHUNK_BYTES,
            "chunks": arguments.chunks,
            "rounds": arguments.rounds,
            "direct_io": arguments.direct_io,
        }
        arguments.json.write_text(json.dumps({**about, "engines": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
