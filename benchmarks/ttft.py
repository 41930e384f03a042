"""Time to first token: with and without lmkv, on a miss, on hits of each kind. Real engines.

    python benchmarks/ttft.py --path DIR [--documents 5] [--tokens 2049] [--json -]

Four engines (vLLM on the CPU, SmolLM2-135M) take turns over documents of fresh random tokens, so
that the machine's moods meet all of them alike; none of them computes while another does:

* ``cold``: an engine without lmkv. ``miss``: one with lmkv, in an empty directory; it stores.
* ``prefix_cache_hit``: the same engine again, from vLLM's own cache.
* ``memory_hit``: the same, when vLLM's cache is empty, from lmkv's host memory.
* ``disk_hit``: another engine that has never seen the document, from the directory.
* ``slow_disk``: one that has not either, and to which that disk answers half a minute late: it is
  to compute, as without lmkv.

``miss`` and ``cold`` change places with every document; ``slow_disk`` follows them. All hits leave
the same tokens to compute.
The bound of a disk hit is what its bytes take at the rate at which fio reads just as many just
before, and two passes of the scheduler: two hits in vLLM's own cache. Ratios are medians of the
documents' own, with their range.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from ttft_engine import TtftEngine, bytes_of

TARGETS = {
    "miss_vs_cold": 1.01,
    "memory_hit_vs_prefix_cache_hit": 1.10,
    "disk_hit_vs_bound": 1.10,
    "slow_disk_vs_cold": 1.05,
}
SLOW = "read.delay:30s"
WARM_UP_TOKENS = 300


def fio_read_seconds(folder: Path, size: int) -> float:
    """What reading ``size`` fresh bytes past the page cache takes."""
    common = [
        "fio", "--name=bound", f"--directory={folder}", f"--size={size // 4096 * 4096}",
        "--bs=1M", "--direct=1", "--ioengine=io_uring", "--iodepth=32", "--output-format=json",
    ]  # fmt: skip
    subprocess.run([*common, "--rw=write", "--refill_buffers"], check=True, capture_output=True)
    read = subprocess.run([*common, "--rw=read"], check=True, capture_output=True, text=True)
    for file in folder.glob("bound.*"):
        file.unlink()
    job = json.loads(read.stdout)["jobs"][0]["read"]
    return float(job["runtime"]) / 1e3 * size / float(job["io_bytes"])


def measure(
    folder: Path, documents: int, tokens: int, seed: int = 0
) -> tuple[list[dict[str, float]], dict[str, dict[str, float]]]:
    """Seconds of every document, and the counters of the two engines with lmkv."""
    source = random.Random(seed)

    def fresh(length: int) -> list[int]:
        return [source.randrange(100, 40_000) for _ in range(length)]

    root, bench = folder / "cache", folder / "fio"
    bench.mkdir(parents=True)
    length = tokens + 64
    settings = {"path": str(root), "host_memory": "1GiB", "free_space_floor": 0}
    engines = [TtftEngine(length, None), TtftEngine(length, settings)]
    try:
        # One is enough to fill a machine; and this one must find the directory as it is then.
        for engine in engines:
            engine.wait_until_ready()
        for faults in ("", SLOW):
            engines.append(TtftEngine(length, settings, faults=faults))
            engines[-1].wait_until_ready()
        plain, first, second, slow = engines
        for engine in engines:
            engine.ttft(fresh(WARM_UP_TOKENS))
        found = []
        for number in range(documents):
            prompt, row = fresh(tokens), {}
            before = bytes_of(root)
            turns: list[tuple[str, Callable[[], float]]] = [
                ("cold", lambda: plain.ttft(prompt)),  # noqa: B023 - called in this round
                ("miss", lambda: first.ttft(prompt)),  # noqa: B023
            ]
            if number % 2:
                turns.reverse()
            # What the first has stored by then.
            turns.append(("slow_disk", lambda: slow.ttft(prompt)))  # noqa: B023
            for name, take in turns:
                row[name] = take()
            row["bytes"] = bytes_of(root) - before
            for name in ("prefix_cache_hit", "memory_hit"):
                if name == "memory_hit":
                    first.forget()
                row[name] = first.ttft(prompt)
            row["fio"] = fio_read_seconds(bench, int(row["bytes"]))
            row["disk_hit"] = second.ttft(prompt)
            row["bound"] = row["fio"] + 2 * row["prefix_cache_hit"]
            found.append(row)
            print(f"document {number}: {in_words(row)}", file=sys.stderr, flush=True)
        engines_with = {"first": first, "second": second, "slow": slow}
        return found, {name: engine.counters() for name, engine in engines_with.items()}
    finally:
        for engine in engines:
            engine.close()


def in_words(row: dict[str, float]) -> str:
    """What was found, for whoever waits for it."""
    return ", ".join(f"{name} {value:.3f} s" for name, value in row.items() if name != "bytes")


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """The JSON of what ``measure`` found."""
    result: dict[str, Any] = {
        f"{name}_ms": statistics.median(row[name] * 1e3 for row in rows)
        for name in (
            "cold",
            "miss",
            "slow_disk",
            "prefix_cache_hit",
            "memory_hit",
            "disk_hit",
            "bound",
        )
    }
    result["ratios"], result["ranges"] = {}, {}
    for name in TARGETS:
        mine, other = name.split("_vs_")
        each = [row[mine] / row[other] for row in rows]
        result["ratios"][name] = statistics.median(each)
        result["ranges"][name] = [min(each), max(each)]
    result["targets"] = TARGETS
    result["disk_hit_speedup"] = result["cold_ms"] / result["disk_hit_ms"]
    return result


def main() -> None:
    """See the module."""
    parser = parser_of("Time to first token, hit and miss.")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2049, help="of a document")
    arguments = parser.parse_args()
    keep_standard_output()
    with folder_in(arguments.path, "ttft") as folder:
        rows, counters = measure(folder, arguments.documents, arguments.tokens)
    result = summary(rows)
    result["counters"] = counters
    result["documents"] = rows
    write_result(result, arguments.json)


if __name__ == "__main__":
    main()
