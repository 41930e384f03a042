"""lmkv beside others that keep vLLM's prefix cache in a directory: same prompts, model and disk.

    python benchmarks/peers.py --path DIR [--documents 5] [--tokens 2500] [--json -]

Of every system two engines (vLLM on the CPU, SmolLM2-135M): the first computes a document and
stores it, the second, which has never seen it, loads it from the directory, with the page cache
emptied of it before. A plain engine computes it, too. Systems take turns, in an order that is drawn
anew for every document; nothing else runs meanwhile. The documents are random tokens, so that no
two share a head, and of a length that is no whole number of anybody's chunks.

* ``lmkv``: as it is, checksums on, direct I/O where it can.
* ``example``: vLLM's ExampleConnector, which its source calls a simple debug implementation:
  safetensors of whole prompts, stored and loaded in the step.

A hit counts only if vLLM says that it computed no more than the last block or two of the document,
and a store only if its files are there: a system that does otherwise gets no number, but a reason.

``store_ratio`` is the time to the first token of a document that is computed and stored over that
of the plain engine; ``hit_ratio`` that of one that is loaded over lmkv's. Medians of the documents'
own, with their range; ``same_answers`` is the share of first tokens that were the plain engine's.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from ttft_engine import TtftEngine
from vllm_engine import BLOCK_TOKENS

SYSTEMS = ("lmkv", "example")
MOST_COMPUTED = 2 * BLOCK_TOKENS  # of a document that is loaded
EXAMPLE = ("ExampleConnector", "vllm.distributed.kv_transfer.kv_connector.v1.example_connector")
WARM_UP_TOKENS = 300
QUIET_SECONDS = 1.0


def system(name: str, folder: Path) -> dict[str, Any]:
    """What ``TtftEngine`` is told of one that keeps its files in ``folder``."""
    if name == "lmkv":
        settings: dict[str, Any] = {
            "path": str(folder), "host_memory": "1GiB", "free_space_floor": 0,
        }  # fmt: skip
        return {"settings": settings}
    return {"settings": {"shared_storage_path": str(folder)}, "connector": EXAMPLE}


def wait_until_written(folder: Path) -> None:
    """Until nothing more comes into ``folder``: some store behind the request's back."""
    size, since = -1, time.monotonic()
    while time.monotonic() < since + QUIET_SECONDS:
        now = 0
        for file in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # a temporary one, renamed by now
                now += file.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(0.05)


def drop_pages(folder: Path) -> int:
    """The page cache forgets all files in ``folder``; how many bytes they have."""
    size = 0
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size += os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    return size


def measure(
    folder: Path, names: Sequence[str], documents: int, tokens: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Of each document, of each system: seconds to store and to load, bytes, and the answers."""
    source = random.Random(seed)

    def fresh(length: int) -> list[int]:
        return [source.randrange(100, 40_000) for _ in range(length)]

    length = tokens + 64
    plain = TtftEngine(length, None)
    pairs: dict[str, list[TtftEngine]] = {}
    try:
        plain.wait_until_ready()
        for name in names:
            (folder / name).mkdir()
            how = system(name, folder / name)
            pairs[name] = [TtftEngine(length, **how) for _ in range(2)]
            for engine in pairs[name]:
                engine.wait_until_ready()
        # What is done for the first time is not measured: computing, storing, loading.
        warm_up = fresh(WARM_UP_TOKENS)
        plain.ttft(warm_up)
        for name, pair in pairs.items():
            for engine in pair:
                engine.ttft(warm_up)
                wait_until_written(folder / name)
        rows = []
        for number in range(documents):
            prompt = fresh(tokens)
            row: dict[str, Any] = {}
            turns = ["plain", *pairs]
            for name in source.sample(turns, len(turns)):
                if name == "plain":
                    done = plain.batch([prompt], 1)
                    row[name] = {"cold": done["ttft"][0], "answer": done["answers"][0]}
                    continue
                first, second = pairs[name]
                before = drop_pages(folder / name)
                stored = first.batch([prompt], 1)
                wait_until_written(folder / name)
                size = drop_pages(folder / name) - before
                loaded = second.batch([prompt], 1)
                row[name] = {
                    "store": stored["ttft"][0],
                    "hit": loaded["ttft"][0],
                    "bytes": size,
                    "computed": tokens - loaded["cached"][0],
                    "answers": [stored["answers"][0], loaded["answers"][0]],
                }
            rows.append(row)
            print(f"document {number}: {row}", file=sys.stderr, flush=True)
        return rows
    finally:
        for engine in (plain, *(engine for pair in pairs.values() for engine in pair)):
            engine.close()


def why_not(name: str, rows: list[dict[str, Any]]) -> str:
    """Why there is nothing to compare; "" if there is."""
    if not all(row[name]["bytes"] for row in rows):
        return "not every document was stored"
    if any(row[name]["computed"] > MOST_COMPUTED for row in rows):
        return "not every document was loaded"
    return ""


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of what ``measure`` found."""
    result: dict[str, Any] = {
        "plain": {"cold_ms": statistics.median(row["plain"]["cold"] * 1e3 for row in rows)}
    }
    for name in rows[0]:
        if name == "plain":
            continue
        if reason := why_not(name, rows):
            result[name] = {"failed": reason}
            continue
        one: dict[str, Any] = {
            f"{kind}_ms": statistics.median(row[name][kind] * 1e3 for row in rows)
            for kind in ("store", "hit")
        }
        one["computed_tokens"] = max(row[name]["computed"] for row in rows)
        one["bytes"] = statistics.median(row[name]["bytes"] for row in rows)
        for ratio, kind, other, theirs in (
            ("store_ratio", "store", "plain", "cold"),
            ("hit_ratio", "hit", "lmkv", "hit"),
        ):
            if ratio == "hit_ratio" and why_not("lmkv", rows):
                continue
            each = [row[name][kind] / row[other][theirs] for row in rows]
            one[ratio] = statistics.median(each)
            one[f"{ratio}_range"] = [min(each), max(each)]
        one["same_answers"] = sum(
            answer == row["plain"]["answer"] for row in rows for answer in row[name]["answers"]
        ) / (2 * len(rows))
        result[name] = one
    return result


def main() -> None:
    """See the module."""
    parser = parser_of("lmkv beside its peers.")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2500, help="of a document")
    parser.add_argument("--peers", nargs="*", default=SYSTEMS[1:], choices=SYSTEMS[1:])
    arguments = parser.parse_args()
    names = ["lmkv", *arguments.peers]
    keep_standard_output()
    with folder_in(arguments.path, "peers") as folder:
        rows = measure(folder, names, arguments.documents, arguments.tokens)
    write_result({**summary(rows), "documents": rows}, arguments.json)


if __name__ == "__main__":
    main()
