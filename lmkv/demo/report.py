"""The results as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmkv.demo.errors import DemoError
from lmkv.demo.measure import Measured, Results

KINDS = {"plain": "plain vLLM", "lmkv": "vLLM + lmkv"}


def as_json(results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with `engines`, `speedup`, `answers_equal`, and what was asked (`about`).

    Times are in seconds. `tokens_loaded` is what the first query got through lmkv, `tokens_kept`
    what the second one found in the engine's own prefix cache. `reading_s` is how long the first
    one read chunks from the directory, whatever the disk did meanwhile. `speedup` is null unless
    both kinds of engine took part.
    """
    return {
        "engines": [_engine(engine) for engine in results.engines],
        "speedup": results.speedup,
        "answers_equal": results.answers_equal,
        **about,
    }


def _engine(engine: Measured) -> dict[str, Any]:
    return {
        "name": engine.name,
        "kind": engine.kind,
        "ttft_first_s": engine.first.ttft_s,
        "ttft_second_s": engine.second.ttft_s,
        "tokens_loaded": engine.first.tokens_loaded,
        "tokens_kept": engine.second.tokens_kept,
        "reading_s": engine.first.reading_s,
        "prompt_tokens": engine.first.prompt_tokens,
        "answer_tokens": engine.first.answer_tokens,
        "tokens_per_s": engine.first.tokens_per_s,
        "ready_s": engine.ready_s,
        "stored_s": engine.stored_s,
        "answer": engine.first.text,
        "answer_second": engine.second.text,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content`; raises `DemoError`."""
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DemoError(f"cannot write {path}: {error.strerror}") from error


def as_text(results: Results) -> RenderableType:
    """The table, the speed-up and the answer."""
    parts: list[RenderableType] = [_table(results), *_verdict(results)]
    if results.answers_equal:
        parts += [Text("The answer:", "bold"), _quoted(results.engines[0].first.text)]
    else:
        for engine in results.engines:
            for which, answer in (("first", engine.first), ("second", engine.second)):
                parts += [Text(f"{engine.name}, {which} query:", "bold"), _quoted(answer.text)]
    return Group(*parts)


def _table(results: Results) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)  # 80 columns
    for heading in ("Engine", "Kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("TTFT\nfirst query", "TTFT\nsecond query", "Tokens\nloaded", "Speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    # What the first query is compared with: the last plain engine, which had to compute it all.
    plain = [engine.first.ttft_s for engine in results.engines if engine.kind == "plain"]
    for engine in results.engines:
        compared = plain and engine.first.tokens_loaded
        table.add_row(
            engine.name,
            KINDS[engine.kind],
            f"{engine.first.ttft_s:.2f} s",
            f"{engine.second.ttft_s:.2f} s",
            f"{engine.first.tokens_loaded:,} of {engine.first.prompt_tokens:,}",
            f"{plain[-1] / engine.first.ttft_s:.1f}x" if compared else "",
            style="green" if engine.first.tokens_loaded else "",
        )
    return table


def _verdict(results: Results) -> list[Text]:
    equal = results.answers_equal
    lines = [
        Text("TTFT: from sending the question to the first token of the answer.", "dim"),
        Text(f"Answers equal: {'yes' if equal else 'NO'}", "bold green" if equal else "bold red"),
    ]
    last = results.engines[-1]
    if results.speedup is not None and last.first.tokens_loaded:
        lines.append(
            Text(
                f"{last.name} had never seen the document, loaded {last.first.tokens_loaded:,} of "
                f"{last.first.prompt_tokens:,} tokens and answered {results.speedup:.1f} times "
                "faster than plain vLLM.",
                "bold",
            )
        )
    if any(engine.kind == "lmkv" and engine.stored_s is None for engine in results.engines):
        lines.append(
            Text("Not all KV reached the directory in time; `lmkv doctor DIR` may know why.")
        )
    return lines


def _quoted(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))


def show_error(console: Console, error: DemoError) -> None:
    """The error, its evidence and what to do about it."""
    if error.log:
        console.print(Text("The engine's last words:", "bold"))
        for line in error.log.splitlines():
            console.print(Text("  " + line), soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("what to do: ", "bold"), error.hint), soft_wrap=True)
