"""From which length on a prompt is loaded sooner than computed. Real engines.

    python benchmarks/break_even.py --path DIR [--documents 3] [--tokens 64 ... 4096] [--json -]

Two engines (vLLM on the CPU, SmolLM2-135M) take turns over prompts of fresh random tokens of every
length: one computes and stores a prompt, and another, which has never seen it, loads it from the
directory (``disk_hit``), with the page cache emptied of it, and computes as many other tokens while
the connector is taken out of it (``cold``). It is told to load whatever is there (``load_policy``
``always``): left to itself it would not load what is not worth it. Medians of each length, with
their range. ``break_even_tokens`` is the shortest of the lengths from which on every median of a
hit is below that of computing; null is none.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from page_cache import drop_pages
from ttft_engine import TtftEngine
from vllm_engine import BLOCK_TOKENS

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
WARM_UP_TOKENS = 300


def measure(
    folder: Path, lengths: Sequence[int], documents: int, seed: int = 0
) -> list[dict[str, float]]:
    """Of every document its ``tokens``, and the seconds of ``cold`` and ``disk_hit``."""
    source = random.Random(seed)

    def fresh(length: int) -> list[int]:
        return [source.randrange(100, 40_000) for _ in range(length)]

    longest = max(*lengths, WARM_UP_TOKENS) + 64
    settings = {
        "path": str(folder), "host_memory": "1GiB", "free_space_floor": 0, "load_policy": "always",
    }  # fmt: skip
    with contextlib.ExitStack() as started:
        engines = [
            started.enter_context(contextlib.closing(TtftEngine(longest, settings)))
            for _ in range(2)
        ]
        first, second = engines
        for engine in engines:
            engine.wait_until_ready()
        warm_up = fresh(WARM_UP_TOKENS)
        for engine in engines:
            engine.ttft(warm_up)
        rows = []
        for _ in range(documents):
            for length in source.sample(lengths, len(lengths)):
                prompt = fresh(length)
                row: dict[str, float] = {"tokens": length}
                first.ttft(prompt)
                drop_pages(folder)
                second.set_connector(is_in=False)
                row["cold"] = second.ttft(fresh(length))
                second.set_connector(is_in=True)
                loaded = second.batch([prompt], 1)
                row["disk_hit"], row["cached"] = loaded["ttft"][0], loaded["cached"][0]
                if row["cached"] < length - BLOCK_TOKENS:
                    raise RuntimeError(f"of {length} tokens only {row['cached']} were loaded")
                rows.append(row)
                print(f"{row}", file=sys.stderr, flush=True)
        return rows


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """The JSON of what ``measure`` found."""
    by_tokens: list[dict[str, Any]] = []
    for tokens in sorted({int(row["tokens"]) for row in rows}):
        mine = [row for row in rows if row["tokens"] == tokens]
        one: dict[str, Any] = {"tokens": tokens, "cached": min(row["cached"] for row in mine)}
        for kind in ("cold", "disk_hit"):
            each = [row[kind] * 1e3 for row in mine]
            one[f"{kind}_ms"] = statistics.median(each)
            one[f"{kind}_range_ms"] = [min(each), max(each)]
        by_tokens.append(one)
    break_even = None
    for one in reversed(by_tokens):
        if one["disk_hit_ms"] >= one["cold_ms"]:
            break
        break_even = one["tokens"]
    return {
        "break_even_tokens": break_even,
        "by_tokens": by_tokens,
        "repetitions": len(rows) // len(by_tokens),
        "documents": rows,
    }


def main() -> None:
    """See the module."""
    parser = parser_of("From which length on a prompt is loaded sooner than computed.")
    parser.add_argument("--documents", type=int, default=3, help="of each length")
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, help="lengths")
    arguments = parser.parse_args()
    keep_standard_output()
    with folder_in(arguments.path, "break-even") as folder:
        rows = measure(folder, arguments.tokens, arguments.documents)
    write_result(summary(rows), arguments.json)


if __name__ == "__main__":
    main()
