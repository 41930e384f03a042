"""``docs/messages.md`` has every line that lmkv logs, and every reason that is filled in."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
LEVELS = {"debug", "debug_once", "info", "warning", "error", "exception", "critical"}
FILLED_IN = "\0"
REASONING = {"refusal", "_group_refusal", "problem"}  # functions that return reasons


def rows(heading: str) -> list[str]:
    """The first cells of a section's table, with what is filled in marked."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert cells, heading
    return [cell.replace("....", f"{FILLED_IN}.").replace("...", FILLED_IN) for cell in cells]


LINES = [*rows("At start"), *rows("While it runs"), *rows("At the end")]
REASONS = [*rows("Reasons for doing nothing"), *rows("Reasons of a chunk")]


def parsed(*places: str) -> Iterator[ast.AST]:
    for place in places:
        for path in sorted((ROOT / "lmkv").glob(place)):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def text_of(node: ast.expr) -> str | None:
    """A text with what is filled in marked; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sdr]", FILLED_IN, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else FILLED_IN for p in node.values]
        return "".join(map(str, parts))
    return None


def logged() -> list[str]:
    """The first arguments of all calls of a logger in lmkv/vllm."""
    found = []
    for node in parsed("vllm/*.py"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in LEVELS or ast.unparse(node.func.value) != "logger":
                continue
            text = text_of(node.args[0])
            assert text is not None, f"a logger is given no text: {ast.unparse(node)}"
            found.append(text)
    return found


def reasons_in_python() -> list[str]:
    """Why nothing is cached: what ``refusal`` returns, ``LayoutError`` and ``_refuse`` get."""
    found = []
    for node in parsed("vllm/*.py"):
        values: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef) and node.name in REASONING:
            values = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("LayoutError", "._refuse")
        ):
            values = node.args
        found += [text for value in values if (text := text_of(value))]
    return found


def reasons_in_the_core() -> list[str]:
    """What the core says of a chunk: faults of files, and why one was not stored or loaded."""
    found = []
    for name, pattern in {
        "store/chunk_format.cpp": r'case ChunkFault::\w+: return "([^"]+)"',
        "store/space.cpp": r'case Refusal::\w+: return "([^"]+)"',
        "store/inspection.cpp": r'\bbad\([^"]*?"([^"]+)"',
        "io/read_task.cpp": r'\bbad\("([^"]+)"',
        "engine/load_pipeline.cpp": r'(?:timed_out\(|stalled\([^"]*)"([^"]+)"',
        "common/status.hpp": r'Status\(StatusKind::\w+, 0,\s*"([^"]+)"',
    }.items():
        texts = re.findall(pattern, (ROOT / "csrc" / name).read_text(encoding="utf-8"))
        assert texts, name
        found += [text + FILLED_IN if text.endswith(": ") else text for text in texts]
    return [text for text in found if text and text != "sound"]


def is_row_of(row: str, text: str) -> bool:
    """Whether ``row``, which may end early and leave things out, is about ``text``."""
    pattern = re.escape(row).replace(re.escape(FILLED_IN), ".+?")
    return re.match(pattern, text, re.DOTALL) is not None


@pytest.mark.parametrize("text", logged())
def test_every_line_of_the_log_is_on_the_page_once(text: str) -> None:
    matching = [row for row in LINES if is_row_of(row, text)]
    assert len(matching) == 1, f"{text!r} is on the page as {matching}"


@pytest.mark.parametrize("text", [*reasons_in_python(), *reasons_in_the_core()])
def test_every_reason_is_on_the_page(text: str) -> None:
    if text != FILLED_IN:
        assert any(is_row_of(row, text) for row in REASONS), text


def test_there_are_no_other_lines_and_reasons_on_the_page() -> None:
    lines, reasons = logged(), [*reasons_in_python(), *reasons_in_the_core()]
    assert len(lines) >= 19
    for row in LINES:
        assert any(is_row_of(row, text) for text in lines), row
    for row in REASONS:
        assert any(is_row_of(row, text) for text in reasons), row
    assert len(set(LINES)) == len(LINES)
    assert len(set(REASONS)) == len(REASONS)
