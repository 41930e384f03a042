"""A directory of very many chunks: what counting, evicting and looking up cost.

    python benchmarks/scale.py --path DIR [--files 100000] [--repetitions 5] [--json -]

Makes sparse chunk files with times of last use spread over a week, then starts engines over them:
some far below their capacity, whose first scan counts everything; some at it, which have to evict a
twentieth, each time made good before the next. No byte of a chunk is read or written: this is about
names, inodes and memory alone. Times are medians, with their range; memory is the most that was
seen.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from command_line import parser_of, write_result

from lmkv._C import Directory, Engine, EngineOptions, LookupService, renewed, use_stamp

NAMESPACE = bytes(32)
BLOCK_BYTES, BLOCKS = 4096, 1
CHUNK_BYTES = 1 << 20  # of each sparse file
PROMPT_CHUNKS = 512
WEEK = 7 * 86_400
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def fill(root: Path, files: int, seed: int) -> list[bytes]:
    """The keys of ``files`` chunks under ``root``; a twentieth of them was used more than once."""
    chance = random.Random(seed)
    rank = root / "v1" / NAMESPACE.hex()[:16] / "r0"
    for number in range(1 << 12):
        (rank / f"{number:03x}").mkdir(parents=True, mode=0o700, exist_ok=True)
    now = time.time()
    keys = []
    for _ in range(files):
        key = chance.randbytes(32)
        name = key.hex()
        descriptor = os.open(rank / name[:3] / f"{name}.kv", os.O_CREAT | os.O_WRONLY, 0o600)
        os.ftruncate(descriptor, CHUNK_BYTES)
        used = now - chance.random() * WEEK
        stamp = use_stamp(used, chance.randrange(1 << 15), used)
        if chance.random() < 0.05:
            later = used + chance.random() * (now - used)
            stamp = renewed(stamp, use_stamp(later, 0, later))
        os.utime(descriptor, ns=(stamp, stamp))
        os.close(descriptor)
        keys.append(key)
    return keys


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmRSS" in line)


class Keeper:
    """An engine over ``root`` that stores nothing: its housekeeping is what is measured."""

    def __init__(self, root: Path, capacity: int, eviction: str = "reuse") -> None:
        self._memory = ctypes.create_string_buffer(2 * BLOCK_BYTES)
        self._before = resident()
        self._begin = time.perf_counter()
        self.engine = Engine(
            EngineOptions(
                root=str(root),
                namespace=NAMESPACE,
                rank=0,
                segments=[(ctypes.addressof(self._memory), BLOCK_BYTES, BLOCK_BYTES)],
                block_count=1,
                block_tokens=16,
                blocks_per_chunk=BLOCKS,
                host_memory=1 << 20,
                capacity=capacity,
                free_space_floor=0,
                eviction=eviction,
            )
        )

    def until(self, name: str, value: int) -> float:
        """Seconds from the engine's start until a counter has come to ``value``."""
        while self.engine.stats()[name] < value:
            time.sleep(0.005)
        return time.perf_counter() - self._begin

    def close(self) -> dict[str, int]:
        """Its counters, and the memory that it has taken."""
        stats = dict(self.engine.stats()) | {"memory": resident() - self._before}
        self.engine.close()
        return stats


def drop_caches(root: Path) -> bool:
    """Have the kernel forget names and inodes; whether it did."""
    descriptor = os.open(root, os.O_RDONLY)
    ctypes.CDLL(None).syncfs(descriptor)  # of this filesystem alone: another may hang
    os.close(descriptor)
    try:
        DROP_CACHES.write_text("2", encoding="ascii")
    except OSError:
        return False
    return True


def look_up(root: Path, keys: list[bytes]) -> list[float]:
    """Seconds of each of 50 prompts whose chunks are all there."""
    service = LookupService(Directory(root=str(root), namespace=NAMESPACE, ranks=1))
    took = []
    for number in range(50):
        prompt = random.Random(number).sample(keys, PROMPT_CHUNKS)
        begin = time.perf_counter()
        while service.lookup(prompt, 1.0) is None:
            pass
        took.append(time.perf_counter() - begin)
    return took


def count(root: Path, files: int, repetitions: int) -> dict[str, Any]:
    """Seconds of first scans, and the memory that they take."""
    total, memory = files * CHUNK_BYTES, []
    result: dict[str, Any] = {}
    for name in ("dropped", "warm"):
        took = []
        for _ in range(repetitions):
            if name == "dropped" and not drop_caches(root):
                break
            keeper = Keeper(root, 2 * total)
            took.append(keeper.until("housekeeping_passes", 1))
            stats = keeper.close()
            memory.append(stats["memory"] / files)
            if stats["store_bytes_used"] != total:
                raise RuntimeError(f"{stats['store_bytes_used']} bytes were counted, not {total}")
        result |= middle(f"count_{name}_s", took)
    return result | {"count_memory_per_file": max(memory)}


def evict(root: Path, files: int, repetitions: int, seed: int) -> dict[str, Any]:
    """Seconds of evictions of a twentieth from a full directory, and the memory that they take."""
    took, memory = [], []
    stats: dict[str, int] = {}
    for number in range(repetitions):
        keeper = Keeper(root, files * CHUNK_BYTES)
        took.append(keeper.until("chunks_evicted", files - int(0.95 * files)))
        stats = keeper.close()
        memory.append(stats["memory"] / files)
        fill(root, stats["chunks_evicted"], seed + number)
    return middle("evict_s", took) | {
        "evicted": stats["chunks_evicted"],
        "scans": stats["housekeeping_passes"],
        "evict_memory_per_file": max(memory),
    }


def middle(name: str, values: list[float]) -> dict[str, Any]:
    """The median and the range, under that name; nothing of nothing."""
    if not values:
        return {}
    return {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}


def measure(path: Path, files: int, repetitions: int, seed: int = 1) -> dict[str, Any]:
    """The numbers, in seconds and bytes. Blocks for minutes with a million files."""
    root = path / f"lmkv-scale-{os.getpid()}"
    try:
        begin = time.perf_counter()
        keys = fill(root, files, seed)
        return {
            "files": files,
            "repetitions": repetitions,
            "made_s": time.perf_counter() - begin,
            **count(root, files, repetitions),
            **middle("lookup_s", look_up(root, keys)),
            **evict(root, files, repetitions, seed + 1),
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main() -> None:
    """See the module."""
    parser = parser_of(__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    result = measure(arguments.path, arguments.files, arguments.repetitions)
    write_result(result, arguments.json or "-")


if __name__ == "__main__":
    main()
