"""Time to first token: with and without lmkv, on a miss, on hits of each kind. Real engines.

    python benchmarks/ttft.py --path DIR [--documents 5] [--pairs 4] [--tokens 2049] [--json -]

Four engines (vLLM on the CPU, SmolLM2-135M) with lmkv take turns over documents of fresh random
tokens, so that the machine's moods meet all of them alike; none of them computes while another
does. Of each document:

* ``stored``: the first computes and stores it.
* ``prefix_cache_hit``: the first again, from vLLM's own cache.
* ``memory_hit``: the first, when vLLM's cache is empty, from lmkv's host memory. These two take
  turns three times; the medians count.
* ``node_hit``: a neighbour, which has never seen the document, from the host memory that it shares
  with the first. To it the disk answers half a minute late.
* ``disk_hit``: the second, which has memory of its own and has never seen it either, from the
  directory.

All hits leave the same tokens to compute. A hit in memory is set against vLLM's own, and against
that and one contiguous copy of as many bytes (``copy_bound``). The bound of a disk hit is what its
bytes take at the rate at which fio reads just as many just before, and two passes of the scheduler:
two hits in vLLM's own cache. Between the documents are as many of ``--pairs`` rounds, each with
prompts of a quarter of their length, since there a few per cent are looked for:

* ``miss``: the first computes and stores one. ``cold``: the same engine computes as many other
  tokens while the connector is taken out of it.
* ``slow_disk``: the third engine, to which the disk answers half a minute late, is asked about what
  the first has just stored: it is to compute it, as without lmkv. ``slow_cold``: that engine
  without the connector. Those few where it tries the disk all the same are listed by themselves.

The two of a pair are of one engine, because two of one kind differ by a tenth by how their memory
happens to lie; and they change places from round to round. Ratios are medians of the documents' or
the pairs' own, with their range.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from command_line import folder_in, keep_standard_output, parser_of, write_result
from page_cache import drop_pages
from ttft_engine import TtftEngine, bytes_of
from vllm_engine import BLOCK_TOKENS

TARGETS = {
    "miss_vs_cold": 1.01,
    "memory_hit_vs_prefix_cache_hit": 1.10,
    "node_hit_vs_prefix_cache_hit": 1.10,
    "memory_hit_vs_copy_bound": 1.10,
    "node_hit_vs_copy_bound": 1.10,
    "disk_hit_vs_bound": 1.10,
    "slow_disk_vs_slow_cold": 1.05,
}
KINDS = (  # of what is measured of a document
    "stored", "prefix_cache_hit", "memory_hit", "node_hit", "copy_bound", "disk_hit", "bound",
)  # fmt: skip
SLOW = "read.delay:30s"
WARM_UP_TOKENS = 300
HITS = 3
Row = dict[str, float]


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


class Copies:
    """A contiguous copy of random bytes, by one thread, as lmkv's in host memory are."""

    def __init__(self) -> None:
        self._from = self._to = np.empty(0, np.uint8)

    def seconds(self, size: int) -> float:
        """What copying ``size`` bytes takes; of the few times that are tried, the median."""
        if self._from.size != size:
            self._from = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            self._to = np.zeros(size, np.uint8)
        each = []
        for _ in range(HITS):
            begin = time.perf_counter()
            np.copyto(self._to, self._from)
            each.append(time.perf_counter() - begin)
        return statistics.median(each)


class Bench:
    """Four engines over one directory: the first stores, the second loads, to the other two the
    disk is slow; the last of them shares host memory with the first.
    """

    def __init__(self, folder: Path, tokens: int, seed: int = 0) -> None:
        self._source = random.Random(seed)
        self._root, self._fio = folder / "cache", folder / "fio"
        self._fio.mkdir(parents=True)
        self._tokens = tokens
        self._copies = Copies()
        settings = {"path": str(self._root), "host_memory": "1GiB", "free_space_floor": 0}
        self.engines: list[TtftEngine] = []
        with contextlib.ExitStack() as started:
            arena = started.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
            shared = {**settings, "host_memory": "shared:1GiB", "arena_directory": arena}
            for mine, faults in ((shared, ""), (settings, ""), (settings, SLOW), (shared, SLOW)):
                engine = TtftEngine(tokens + 64, mine, faults=faults)
                self.engines.append(started.enter_context(contextlib.closing(engine)))
                # One is enough to fill a machine; and the first must find the directory empty.
                engine.wait_until_ready()
            for engine in self.engines:
                engine.ttft(self._fresh(WARM_UP_TOKENS))
            self._started = started.pop_all()

    def _fresh(self, length: int) -> list[int]:
        return [self._source.randrange(100, 40_000) for _ in range(length)]

    def pair(self, number: int) -> Row:
        """Seconds of both pairs; with every ``number`` they change places."""
        first, _, slow, _ = self.engines
        prompt, other = self._fresh(self._tokens // 4), self._fresh(self._tokens // 4)
        stored = [("miss", first, prompt), ("cold", first, other)]
        late = [("slow_disk", slow, prompt), ("slow_cold", slow, other)]
        row: Row = {}
        trials = slow.counters().get("load_decisions_trial", 0)
        for turns in (stored, late):
            for name, engine, asked in turns if number % 2 else reversed(turns):
                engine.set_connector(is_in=asked is prompt)
                row[name] = engine.ttft(asked)
                engine.set_connector(is_in=True)
        row["is_trial"] = slow.counters().get("load_decisions_trial", 0) - trials
        return row

    def document(self) -> Row:
        """Seconds of one, stored and loaded from everywhere."""
        first, second, _, neighbour = self.engines
        row: Row = {}
        prompt = self._fresh(self._tokens)
        before = bytes_of(self._root)
        row["stored"] = first.ttft(prompt)
        row["bytes"] = bytes_of(self._root) - before
        own, memory = [], []
        for _ in range(HITS):
            own.append(first.ttft(prompt))
            first.forget()
            memory.append(first.ttft(prompt))
        row["prefix_cache_hit"] = statistics.median(own)
        row["memory_hit"] = statistics.median(memory)
        row["copy"] = self._copies.seconds(int(row["bytes"]))
        row["copy_bound"] = row["prefix_cache_hit"] + row["copy"]
        row["node_hit"] = self._hit(neighbour, prompt)
        row["fio"] = fio_read_seconds(self._fio, int(row["bytes"]))
        drop_pages(self._root)
        row["disk_hit"] = self._hit(second, prompt)
        row["bound"] = row["fio"] + 2 * row["prefix_cache_hit"]
        return row

    def _hit(self, engine: TtftEngine, prompt: list[int]) -> float:
        """Seconds of the whole document, loaded."""
        loaded = engine.batch([prompt], 1)
        if loaded["cached"][0] < self._tokens - BLOCK_TOKENS:
            raise RuntimeError(f"only {loaded['cached'][0]} tokens were loaded")
        return float(loaded["ttft"][0])

    def close(self) -> None:
        """End the engines."""
        self._started.close()


def measure(folder: Path, documents: int, pairs: int, tokens: int) -> dict[str, Any]:
    """Seconds of every document and of every round of pairs, and the engines' counters."""
    bench = Bench(folder, tokens)
    try:
        found: dict[str, list[Row]] = {"documents": [], "pairs": []}
        for number in range(documents):
            for kind, row in (
                *(("pairs", bench.pair(number * pairs + turn)) for turn in range(pairs)),
                ("documents", bench.document()),
            ):
                found[kind].append(row)
                print(f"{kind}: {in_words(row)}", file=sys.stderr, flush=True)
        names = ("first", "second", "slow", "neighbour")
        counters = {
            name: engine.counters() for name, engine in zip(names, bench.engines, strict=True)
        }
        return {**found, "counters": counters}
    finally:
        bench.close()


def in_words(row: Row) -> str:
    """What was found, for whoever waits for it."""
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items())


def summary(documents: list[Row], pairs: list[Row]) -> dict[str, Any]:
    """What comes out of them."""
    result: dict[str, Any] = {
        f"{name}_ms": statistics.median(row[name] * 1e3 for row in documents) for name in KINDS
    }
    # Of the requests that the slow disk's engine tries it with it is another question.
    trials = [row for row in pairs if row["is_trial"]]
    others = [row for row in pairs if not row["is_trial"]]
    for name in ("cold", "miss", "slow_cold", "slow_disk"):
        result[f"{name}_ms"] = statistics.median(row[name] * 1e3 for row in others)
    result["ratios"], result["ranges"] = {}, {}
    for name in TARGETS:
        mine, other = name.split("_vs_")
        each = [row[mine] / row[other] for row in (others if mine in others[0] else documents)]
        result["ratios"][name] = statistics.median(each)
        result["ranges"][name] = [min(each), max(each)]
    result["slow_disk_trials"] = [row["slow_disk"] / row["slow_cold"] for row in trials]
    result["targets"] = TARGETS
    return result


def main() -> None:
    """See the module."""
    parser = parser_of("Time to first token, hit and miss.")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2049, help="of a document")
    parser.add_argument("--pairs", type=int, default=4, help="for each document")
    arguments = parser.parse_args()
    keep_standard_output()
    with folder_in(arguments.path, "ttft") as folder:
        found = measure(folder, arguments.documents, arguments.pairs, arguments.tokens)
    result = summary(found["documents"], found["pairs"])
    result["tokens"], result["pair_tokens"] = arguments.tokens, arguments.tokens // 4
    result["repetitions"] = arguments.documents
    write_result({**result, **found}, arguments.json)


if __name__ == "__main__":
    main()
