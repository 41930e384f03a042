"""Whole workloads, with lmkv and without: how much hits, and how much sooner all is done.

    python benchmarks/workloads.py --path DIR [--repetitions 3] [--json -]

* ``prefix_repetition``: vLLM's own benchmark dataset of that name: shared documents of random
  tokens, questions behind them, in random order, a few at a time.
* ``multi_turn``: conversations that take turns; every turn sends all that was said before.

Two engines (vLLM on the CPU, SmolLM2-135M), one with lmkv in an empty directory, are given the same
batches of requests in turn, now one first and now the other; a batch is done when its last answer
is. Both have vLLM's own prefix cache, in a KV cache that holds less than the workload comes back
to, as that of a GPU does. ``speedup`` is the plain engine's time over the other's, for all batches
together: its median over repetitions, each with fresh prompts, and the range. ``same_answers`` is
the share of answers that are the same in all tokens: of random tokens a model is sometimes torn
between two, and then rounding decides. Conversations go on with the plain engine's.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from ttft_engine import TtftEngine
from vllm_engine import BLOCK_TOKENS

Prompt = list[int]
Batch = list[Prompt]

MODEL_LEN = 2048
AT_ONCE = 3


@dataclass(frozen=True)
class Size:
    """How large the engines' KV cache and the workloads are."""

    kv_tokens: int = 4096
    answer_tokens: int = 16
    documents: int = 6
    document_tokens: int = 1024
    questions: int = 5  # about each document
    question_tokens: int = 64
    conversations: int = 6
    turns: int = 4
    turn_tokens: int = 300


def prefix_repetition(seed: int, size: Size) -> list[Batch]:
    """As ``vllm bench serve --dataset-name prefix_repetition`` makes them."""
    from transformers import AutoTokenizer
    from vllm.benchmarks.datasets import PrefixRepetitionRandomDataset

    from lmkv.demo.model import prepare_smollm2

    tokenizer = AutoTokenizer.from_pretrained(prepare_smollm2())
    requests = PrefixRepetitionRandomDataset(random_seed=seed).sample(
        tokenizer,
        size.documents * size.questions,
        prefix_len=size.document_tokens,
        suffix_len=size.question_tokens,
        num_prefixes=size.documents,
        output_len=size.answer_tokens,
    )
    texts = [request.prompt for request in requests]
    prompts = tokenizer(texts, add_special_tokens=False).input_ids
    return [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]


class Pair:
    """An engine without lmkv and one with it, which do the same."""

    def __init__(self, root: Path, size: Size) -> None:
        settings = {"path": str(root), "host_memory": "256MiB", "free_space_floor": 0}
        # One of them is vLLM's own null block.
        blocks, length = size.kv_tokens // BLOCK_TOKENS + 1, min(MODEL_LEN, size.kv_tokens)
        self._engines: dict[str, TtftEngine] = {}
        with contextlib.ExitStack() as started:
            for name, its in (("plain", None), ("lmkv", settings)):
                engine = TtftEngine(length, its, kv_blocks=blocks)
                self._engines[name] = started.enter_context(contextlib.closing(engine))
            for engine in self._engines.values():
                engine.wait_until_ready()
            self._started = started.pop_all()
        self._answer_tokens = size.answer_tokens
        self._number = 0
        self.seconds = dict.fromkeys(self._engines, 0.0)
        self.ttft: dict[str, list[float]] = {name: [] for name in self._engines}
        self.same: list[bool] = []

    def answer(self, batch: Batch) -> list[Prompt]:
        """Both engines' answers to a batch."""
        names = list(self._engines)
        self._number += 1
        if self._number % 2:
            names.reverse()
        answers = {}
        for name in names:
            done = self._engines[name].batch(batch, self._answer_tokens)
            self.seconds[name] += done["seconds"]
            self.ttft[name] += done["ttft"]
            answers[name] = done["answers"]
        same = [mine == plain for mine, plain in zip(*answers.values(), strict=True)]
        self.same += same
        return list(answers["plain"])

    def counters(self) -> dict[str, float]:
        """The engine's with lmkv, since its start."""
        return self._engines["lmkv"].counters()

    def close(self) -> None:
        """End both."""
        self._started.close()


def run_shared_documents(pair: Pair, seed: int, size: Size) -> int:
    """``prefix_repetition``; the tokens of all prompts."""
    batches = prefix_repetition(seed, size)
    for batch in batches:
        pair.answer(batch)
    return sum(len(prompt) for batch in batches for prompt in batch)


def run_conversations(pair: Pair, seed: int, size: Size) -> int:
    """``multi_turn``; the tokens of all prompts."""
    dice = random.Random(seed)
    said: list[Prompt] = [[] for _ in range(size.conversations)]
    tokens = 0
    for _ in range(size.turns):
        for first in range(0, size.conversations, AT_ONCE):
            group = range(first, min(first + AT_ONCE, size.conversations))
            for i in group:
                said[i] += [dice.randrange(100, 40_000) for _ in range(size.turn_tokens)]
            batch = [list(said[i]) for i in group]
            tokens += sum(map(len, batch))
            for i, answer in zip(group, pair.answer(batch), strict=True):
                said[i] += answer
    return tokens


WORKLOADS = {"prefix_repetition": run_shared_documents, "multi_turn": run_conversations}


def measure(folder: Path, name: str, repetitions: int, size: Size) -> dict[str, Any]:
    """One workload, again and again, in fresh prompts."""
    pair = Pair(folder / name, size)
    rows = []
    try:
        # What the first request of an engine waits for.
        pair.answer([[7] * 40])
        for repetition in range(repetitions):
            before, seconds = pair.counters(), dict(pair.seconds)
            marks = {engine: len(times) for engine, times in pair.ttft.items()}
            tokens = WORKLOADS[name](pair, repetition, size)
            row: dict[str, Any] = {"prompt_tokens": tokens}
            for engine in pair.seconds:
                times = pair.ttft[engine][marks[engine] :]
                row[f"{engine}_seconds"] = pair.seconds[engine] - seconds[engine]
                row[f"{engine}_ttft_ms"] = statistics.median(times) * 1e3
            loaded = pair.counters().get("tokens_loaded", 0) - before.get("tokens_loaded", 0)
            row["share_loaded"] = loaded / tokens
            row["speedup"] = row["plain_seconds"] / row["lmkv_seconds"]
            rows.append(row)
            print(f"{name} {repetition}: {row}", file=sys.stderr, flush=True)
        counters = {name: count for name, count in sorted(pair.counters().items()) if count}
    finally:
        pair.close()
    same = sum(pair.same) / len(pair.same)
    ranges = {**middle(rows, "speedup"), **middle(rows, "share_loaded")}
    about = {"size": asdict(size), "repetitions": repetitions}
    return {**about, "rows": rows, "same_answers": same, **ranges, "counters": counters}


def middle(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The median and the range of what the rows have under that name."""
    values = [row[name] for row in rows]
    return {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}


def main() -> None:
    """See the module."""
    parser = parser_of("Whole workloads, with lmkv and without.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=sorted(WORKLOADS), help="one of them")
    for of_size in fields(Size):
        name = f"--{of_size.name.replace('_', '-')}"
        parser.add_argument(name, type=int, default=of_size.default)
    arguments = parser.parse_args()
    if arguments.kv_tokens % BLOCK_TOKENS:
        parser.error(f"--kv-tokens: a multiple of {BLOCK_TOKENS}")
    size = Size(**{of_size.name: getattr(arguments, of_size.name) for of_size in fields(Size)})
    names = [arguments.only] if arguments.only else list(WORKLOADS)
    keep_standard_output()
    with folder_in(arguments.path, "workloads") as folder:
        result = {name: measure(folder, name, arguments.repetitions, size) for name in names}
    write_result(result, arguments.json)


if __name__ == "__main__":
    main()
