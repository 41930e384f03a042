"""What stores and loads do to a decode that runs beside them: inter-token latency, real engine.

    python benchmarks/interference.py --path DIR [--windows 24] [--repetitions 10] [--json -]

One engine (vLLM on the CPU, SmolLM2-135M) decodes one long answer. Every so many tokens another
request arrives, a chunk of prompt and one more token, and opens a window of one of four kinds:

* ``nothing``: the prompt is computed, and lmkv stores nothing, since it knows the chunk.
* ``storing``: another prompt of the same length is computed, and stored. Compared with ``nothing``.
* ``cached``: the prompt is in vLLM's own prefix cache; lmkv does nothing.
* ``loading``: the prompt is not, and lmkv loads it from the disk. Compared with ``cached``, where
  as many tokens are left to compute: a load is to cost a decode no more than a local hit does.

The kinds take turns within the answer, in an order that is drawn anew for every four windows, so
that the machine's moods and the answer's growing length meet all of them alike.

A latency is the time between the ends of two steps that each gave the answer a token. ``steps`` are
all of them; ``decode_steps`` those that had nothing but the answer's token to compute;
``cpu_steps`` are the CPU time of the thread that computes, of all of them: other processes cannot
take from it, so it shows on a busy machine too whether lmkv's threads slow it down. Percentiles
are of all windows of a kind, in all repetitions. The range beside a ratio holds 90 % of those that
come out when turns are drawn anew from the measured ones (bootstrap): a ratio whose range holds 1
shows no difference.

The model gets all cores but one, which is left to lmkv's threads: on a GPU node the model does not
run on the cores at all. ``--model-threads`` says otherwise.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from decoding_engine import CHUNK_BYTES, CHUNK_TOKENS, DecodingEngine, Prompt, Window

PROMPT_TOKENS = CHUNK_TOKENS + 1  # the last one is always computed
SLABS = 4
COMPARED_WITH = {"storing": "nothing", "loading": "cached"}
KINDS = ("nothing", "storing", "cached", "loading")
DRAWS = 500


def measure(
    engine: DecodingEngine, windows: int, window_tokens: int, repetitions: int, seed: int = 0
) -> tuple[list[Window], dict[str, float]]:
    """Windows of all kinds, as many of each, after one round of four that is not counted."""
    source = random.Random(seed)

    def fresh() -> Prompt:
        return [source.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)]

    each = windows // len(KINDS)
    known = {kind: [fresh() for _ in range(each)] for kind in KINDS if kind != "storing"}
    for prompts in known.values():
        engine.compute(prompts)
    kept = engine.files()
    found: list[Window] = []
    counted: dict[str, float] = {}
    for repetition in range(-1, repetitions):
        engine.forget()
        # Its loads drive those of the `loading` windows out of host memory, too.
        engine.compute(known["cached"])
        arrivals = [
            (Window(kind, (repetition, turn)), fresh() if kind == "storing" else known[kind][turn])
            for turn in range(each if repetition >= 0 else 1)
            for kind in source.sample(KINDS, len(KINDS))
        ]
        counters = engine.decode(arrivals, window_tokens)
        for file in engine.files() - kept:
            file.unlink()
        if repetition >= 0:
            run = [window for window, _ in arrivals]
            found += run
            for name, count in counters.items():
                counted[name] = counted.get(name, 0) + count
            print(f"repetition {repetition}: {in_words(run)}", file=sys.stderr, flush=True)
    return found, counted


def in_words(windows: list[Window]) -> str:
    """What was found, for whoever waits for it."""
    parts = []
    for kind in KINDS:
        steps, decode_steps = (pooled(windows, kind, name) for name in ("steps", "decode_steps"))
        parts.append(
            f"{kind} p50 {percentile(steps, 0.5):.2f} p99 {percentile(steps, 0.99):.2f} (decode "
            f"{percentile(decode_steps, 0.5):.2f}, {percentile(decode_steps, 0.99):.2f}) ms"
        )
    return "; ".join(parts)


def pooled(windows: list[Window], kind: str, name: str) -> list[float]:
    """All latencies of all windows of a kind."""
    return [value for window in windows if window.kind == kind for value in getattr(window, name)]


def percentile(values: list[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(windows: list[Window], counters: dict[str, float]) -> dict[str, Any]:
    """The JSON of what ``measure`` found."""
    result: dict[str, Any] = {}
    for kind in KINDS:
        row = _row(windows, kind, "steps")
        steps = pooled(windows, kind, "steps")
        row["percentiles_ms"] = [percentile(steps, share / 100) for share in range(1, 101)]
        for name in ("decode_steps", "cpu_steps"):
            row[name] = _row(windows, kind, name)
        if kind in COMPARED_WITH:
            row["compared_with"] = COMPARED_WITH[kind]
        result[kind] = row
    result["storing"]["bytes_stored"] = counters.get("bytes_stored", 0)
    result["loading"]["bytes_loaded"] = counters.get("bytes_loaded", 0)
    result["counters"] = {name: count for name, count in sorted(counters.items()) if count}
    return result


def _row(windows: list[Window], kind: str, name: str) -> dict[str, Any]:
    mine, other = pooled(windows, kind, name), COMPARED_WITH.get(kind, "")
    row: dict[str, Any] = {"tokens": len(mine)}
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        row[f"{label}_ms"] = percentile(mine, share)
        if other:
            row[f"{label}_ratio"] = row[f"{label}_ms"] / percentile(
                pooled(windows, other, name), share
            )
            row[f"{label}_ratio_range"] = _range(windows, kind, other, name, share)
    return row


def _range(windows: list[Window], kind: str, other: str, name: str, share: float) -> list[float]:
    """Between which 90 % of the ratios lie when turns are drawn anew."""
    turns: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        turns.setdefault(window.turn, []).append(window)
    source, ratios = random.Random(0), []
    for _ in range(DRAWS):
        drawn = [w for turn in source.choices(list(turns.values()), k=len(turns)) for w in turn]
        mine, theirs = pooled(drawn, kind, name), pooled(drawn, other, name)
        ratios.append(percentile(mine, share) / percentile(theirs, share))
    ratios.sort()
    return [ratios[DRAWS // 20], ratios[-DRAWS // 20]]


def main() -> None:
    """See the module."""
    parser = parser_of("Decode beside stores and loads.")
    parser.add_argument("--windows", type=int, default=24, help="in one answer, of all kinds")
    parser.add_argument("--window-tokens", type=int, default=25, help="of the answer")
    parser.add_argument("--repetitions", type=int, default=10, help="answers")
    parser.add_argument("--model-threads", type=int, help="default: one for each core but one")
    arguments = parser.parse_args()
    if arguments.windows % len(KINDS) or arguments.windows < len(KINDS) * SLABS:
        parser.error(f"--windows: a multiple of {len(KINDS)}, at least {len(KINDS) * SLABS}")

    cores = len(os.sched_getaffinity(0))
    threads = arguments.model_threads or max(1, cores - 1)
    keep_standard_output()
    with folder_in(arguments.path, "interference") as root:
        engine = DecodingEngine(root, threads, slabs=SLABS)
        try:
            windows, counters = measure(
                engine, arguments.windows, arguments.window_tokens, arguments.repetitions
            )
        finally:
            engine.close()
    result = summary(windows, counters)
    result["repetitions"] = arguments.repetitions
    result["about"] = {
        "cores": cores,
        "model_threads": threads,
        "answers": arguments.repetitions,
        "windows": arguments.windows,
        "window_tokens": arguments.window_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "chunk_bytes": CHUNK_BYTES,
    }
    write_result(result, arguments.json)


if __name__ == "__main__":
    main()
