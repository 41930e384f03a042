"""lmkv beside others that keep vLLM's prefix cache in a directory: same prompts, model and disk.

    python benchmarks/peers.py --path DIR [--documents 5] [--tokens 2500] [--peers NAME ...]

Of every system two engines (vLLM on the CPU, SmolLM2-135M): the first computes a document and
stores it, the second, which has never seen it, loads it from the directory, with the page cache
emptied of it before. A plain engine computes it, too. Systems take turns, in an order that is drawn
anew for every document; nothing else runs meanwhile. The documents are random tokens, so that no
two share a head, and of a length that is no whole number of anybody's chunks. What the systems are
and how they are set is in ``peer_systems.py``; checksums are on in lmkv, whoever else has them.

A peer that is no part of vLLM is installed from the package index into an environment of its own
(build/peers), the first time.

A hit counts only if vLLM says that it computed no more of the document than what lies behind
anybody's last whole chunk, and a store only if its files are there. A system that cannot be
installed, does not start, ends, or does otherwise gets no number, but a reason.

``store_ratio`` is the time to the first token of a document that is computed and stored over that
of one that the same engine computes while the connector is taken out of it (two engines of one kind
differ by a tenth); ``hit_ratio`` that of one that is loaded over lmkv's. Medians of the documents'
own, with their range; ``same_answers`` is the share of first tokens that were the plain engine's.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from page_cache import drop_pages
from peer_systems import SYSTEMS
from ttft_engine import EngineError, TtftEngine
from vllm_engine import BLOCK_TOKENS

MOST_COMPUTED = 256 + 64  # of a document that is loaded: the largest chunk, two blocks
WARM_UP_TOKENS = 300  # more than the largest chunk
QUIET_SECONDS = 1.0


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


def kv_blocks_for(tokens: int) -> int:
    """Of an engine's cache: one request of so many, as many engines as there are have to fit."""
    return -(-tokens // BLOCK_TOKENS) + 10


class Pair:
    """Two engines of a system that share a directory and nothing else."""

    def __init__(self, name: str, folder: Path, max_model_len: int) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self._engines: list[TtftEngine] = []
        system = SYSTEMS[name]
        self._note = system.note
        interpreter = system.interpreter()
        with contextlib.ExitStack() as started:
            for _ in range(2):
                engine = TtftEngine(
                    max_model_len,
                    system.settings(self._folder),
                    kv_blocks=kv_blocks_for(max_model_len),
                    connector=system.connector,
                    interpreter=interpreter,
                )
                self._engines.append(started.enter_context(contextlib.closing(engine)))
            self._started = started.pop_all()

    def start(self, warm_up: list[int]) -> str:
        """Until both have computed, stored and loaded once; why they cannot, or ""."""
        try:
            for engine in self._engines:
                engine.wait_until_ready()
            for engine in self._engines:
                engine.ttft(warm_up)
                wait_until_written(self._folder)
        except EngineError as error:
            return str(error)
        if drop_pages(self._folder):
            return ""
        return f"it stores nothing{self._note}"

    def turn(self, prompt: list[int], other: list[int], *, is_cold_first: bool) -> dict[str, Any]:
        """One computes and stores ``prompt``, and, while the connector is taken out of it, computes
        ``other``, of the same length; the second loads ``prompt``.
        """
        first, second = self._engines
        cold = 0.0
        if is_cold_first:
            cold = self._cold(other)
        before = drop_pages(self._folder)
        stored = first.batch([prompt], 1)
        wait_until_written(self._folder)
        size = drop_pages(self._folder) - before
        if not is_cold_first:
            cold = self._cold(other)
        loaded = second.batch([prompt], 1)
        return {
            "cold": cold,
            "store": stored["ttft"][0],
            "hit": loaded["ttft"][0],
            "bytes": size,
            "computed": len(prompt) - loaded["cached"][0],
            "answers": [stored["answers"][0], loaded["answers"][0]],
        }

    def _cold(self, prompt: list[int]) -> float:
        first = self._engines[0]
        first.set_connector(is_in=False)
        try:
            return first.ttft(prompt)
        finally:
            first.set_connector(is_in=True)

    def close(self) -> None:
        """End both."""
        self._started.close()


def start_pairs(
    names: Sequence[str],
    folder: Path,
    length: int,
    warm_up: list[int],
    pairs: dict[str, Pair],
    reasons: dict[str, str],
) -> None:
    """Into ``pairs`` each system that can be measured here; why others cannot into ``reasons``."""
    for name in names:
        try:
            pairs[name] = Pair(name, folder, length)
        except (OSError, subprocess.CalledProcessError) as error:
            reasons[name] = f"it could not be installed: {error}"
            continue
        if reason := pairs[name].start(warm_up):
            reasons[name] = reason
            pairs.pop(name).close()
        print(f"{name}: {reasons.get(name, 'started')}", file=sys.stderr, flush=True)


def measure(
    folder: Path, names: Sequence[str], documents: int, tokens: int, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Of each document, of each system: seconds to store and to load, bytes, and the answers; and
    of each system that cannot be measured why not.
    """
    source = random.Random(seed)

    def fresh(length: int) -> list[int]:
        return [source.randrange(100, 40_000) for _ in range(length)]

    length = tokens + 64
    reasons: dict[str, str] = {}
    pairs: dict[str, Pair] = {}
    plain = TtftEngine(length, None, kv_blocks=kv_blocks_for(length))
    try:
        plain.wait_until_ready()
        # What is done for the first time is not measured: computing, storing, loading.
        warm_up = fresh(WARM_UP_TOKENS)
        plain.ttft(warm_up)
        start_pairs(names, folder, length, warm_up, pairs, reasons)
        rows = []
        for number in range(documents):
            prompt = fresh(tokens)
            row: dict[str, Any] = {}
            turns = ["plain", *pairs]
            for name in source.sample(turns, len(turns)):
                if name == "plain":
                    done = plain.batch([prompt], 1)
                    row[name] = {"cold": done["ttft"][0], "answer": done["answers"][0]}
                elif name not in reasons:
                    try:
                        row[name] = pairs[name].turn(
                            prompt, fresh(tokens), is_cold_first=number % 2 == 0
                        )
                    except EngineError as error:
                        reasons[name] = str(error)
            rows.append(row)
            print(f"document {number}: {row}", file=sys.stderr, flush=True)
        for row, name in itertools.product(rows, reasons):
            row.pop(name, None)
        return rows, reasons
    finally:
        with contextlib.ExitStack() as ends:  # one that cannot be ended keeps no other
            for engine in (plain, *pairs.values()):
                ends.callback(engine.close)


def why_not(name: str, rows: list[dict[str, Any]]) -> str:
    """Why there is nothing to compare; "" if there is."""
    if not all(row[name]["bytes"] for row in rows):
        return "not every document was stored"
    if any(row[name]["computed"] > MOST_COMPUTED for row in rows):
        return "not every document was loaded"
    return ""


def summary(rows: list[dict[str, Any]], reasons: dict[str, str]) -> dict[str, Any]:
    """The JSON of what ``measure`` found."""
    systems: dict[str, dict[str, Any]] = {
        name: described(name) | {"failed": reason} for name, reason in reasons.items()
    }
    for name in rows[0]:
        if name != "plain":
            systems[name] = described(name) | of_system(name, rows)
    return {
        "plain": {"cold_ms": statistics.median(row["plain"]["cold"] * 1e3 for row in rows)},
        "systems": {name: systems[name] for name in SYSTEMS if name in systems},
        "repetitions": len(rows),
        "documents": rows,
    }


def described(name: str) -> dict[str, Any]:
    """What it is."""
    system = SYSTEMS[name]
    return {
        "title": system.title,
        "checks": system.checks,
        "packages": [*system.packages],
        "settings": system.settings(Path("DIR")),
    }


def of_system(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Its medians and ranges, or why it has none."""
    if reason := why_not(name, rows):
        return {"failed": reason}
    one: dict[str, Any] = {
        f"{kind}_ms": statistics.median(row[name][kind] * 1e3 for row in rows)
        for kind in ("store", "hit")
    }
    one["computed_tokens"] = max(row[name]["computed"] for row in rows)
    one["bytes"] = statistics.median(row[name]["bytes"] for row in rows)
    against = [("store_ratio", "store", name, "cold")]
    if "lmkv" in rows[0] and not why_not("lmkv", rows):
        against.append(("hit_ratio", "hit", "lmkv", "hit"))
    for ratio, kind, other, theirs in against:
        each = [row[name][kind] / row[other][theirs] for row in rows]
        one[ratio] = statistics.median(each)
        one[f"{ratio}_range"] = [min(each), max(each)]
    one["same_answers"] = sum(
        answer == row["plain"]["answer"] for row in rows for answer in row[name]["answers"]
    ) / (2 * len(rows))
    return one


def main() -> None:
    """See the module."""
    peers = [name for name in SYSTEMS if name != "lmkv"]
    parser = parser_of("lmkv beside its peers.")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2500, help="of a document")
    parser.add_argument("--peers", nargs="*", default=peers, choices=peers)
    arguments = parser.parse_args()
    names = ["lmkv", *arguments.peers]
    keep_standard_output()
    with folder_in(arguments.path, "peers") as folder:
        result = summary(*measure(folder, names, arguments.documents, arguments.tokens))
    write_result(result, arguments.json)


if __name__ == "__main__":
    main()
