"""The table and the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

from rich.console import Console

from lmkv.demo import report
from lmkv.demo.ask import Answer
from lmkv.demo.errors import DemoError
from lmkv.demo.measure import Measured, Results


def results(last_answer: str = "It is a cache.") -> Results:
    rows = [
        ("plain-b", "plain", 8.0, 0, "It is a cache."),
        ("lmkv-b", "lmkv", 0.2, 2496, last_answer),
    ]
    return Results(
        tuple(
            Measured(
                name,
                kind,
                25.0,
                Answer(text, ttft, ttft + 2, 2505, 48, loaded),
                Answer(text, 0.1, 2.1, 2505, 48, 0, 2496),
                stored_s=0.0 if kind == "lmkv" else None,
            )
            for name, kind, ttft, loaded, text in rows
        )
    )


def rendered(content: Results) -> str:
    console = Console(width=100, record=True, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(report.as_text(content))
    return capture.get()


def test_json_has_the_promised_shape() -> None:
    content = json.loads(json.dumps(report.as_json(results(), {"model": "m"})))
    assert content["speedup"] == pytest.approx(40)
    assert content["answers_equal"] is True
    assert content["model"] == "m"
    promised = {"name", "kind", "ttft_first_s", "ttft_second_s", "tokens_loaded", "answer"}
    assert all(promised <= engine.keys() for engine in content["engines"])
    last = content["engines"][-1]
    assert (last["name"], last["kind"], last["tokens_loaded"]) == ("lmkv-b", "lmkv", 2496)
    assert (last["ttft_first_s"], last["ttft_second_s"]) == (0.2, 0.1)
    assert last["answer"] == "It is a cache."


def test_the_table_says_what_happened() -> None:
    text = rendered(results())
    row = next(line for line in text.splitlines() if "lmkv-b" in line)
    assert "0.20 s" in row
    assert "2,496 of 2,505" in row
    assert "40.0x" in row
    assert "Answers equal: yes" in text
    assert "It is a cache." in text


def test_different_answers_are_all_shown() -> None:
    text = rendered(results("Something else."))
    assert "Answers equal: NO" in text
    assert "lmkv-b, first query:" in text
    assert "Something else." in text


def test_an_answer_is_shown_as_it_is() -> None:
    """Square brackets are markup to rich."""
    assert "a [bold] word" in rendered(results("a [bold] word"))


def test_an_unwritable_json_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="cannot write"):
        report.write_json(tmp_path / "missing" / "out.json", {})


def test_the_table_fits_80_columns() -> None:
    console = Console(width=80, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(report.as_text(results()))
    assert "…" not in capture.get()
