"""Every code block of the documentation is executed, each kind in its own way.

A block of a kind that is not known here, or a command that nothing here executes, fails.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).parent))
import doc_commands
from doc_commands import ROOT, World

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").glob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """``kind`` is the first word after the fence; "" for a fence without one, or an indent."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in {"fence", "code_block"}:
            assert token.map is not None
            yield Block(page, token.map[0] + 1, (token.info.split() or [""])[0], token.content)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.id)
def test_block(block: Block, world: World) -> None:
    assert block.kind in KINDS, f"{block.id}: blocks of kind {block.kind!r} are not executed"
    KINDS[block.kind](block.text, world)


def test_there_are_blocks_in_every_place() -> None:
    pages = {block.page.relative_to(ROOT).parts[0] for block in BLOCKS}
    assert pages >= {"README.md", "CONTRIBUTING.md", "docs"}


def console(text: str, world: World) -> None:
    lines = doc_commands.lines_of(text)
    assert lines, "no command"
    for line in lines:
        doc_commands.execute(line, world)


def python(text: str, world: World) -> None:
    exec(compile(text, "<documentation>", "exec"), {"__name__": "__documentation__"})


def json_block(text: str, world: World) -> None:
    """A request to vLLM, or a value of --kv-transfer-config."""
    value = json.loads(text)
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if "messages" in value:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate(value)
        assert not request.model_extra, f"vLLM knows no {list(request.model_extra or ())}"
        return
    from vllm.config import KVTransferConfig

    doc_commands.check_transfer(KVTransferConfig(**value))


def yaml_block(text: str, world: World) -> None:
    """Kubernetes objects, by Kubernetes' own schema; their commands as any other."""
    documents = list(yaml.safe_load_all(text))
    assert documents
    for document in documents:
        assert "kind" in document, "neither of Kubernetes nor of anything else known here"
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        for container in _containers(document):
            doc_commands.execute(" ".join(container["command"]), world)


def _containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    template = document.get("spec", {}).get("template", {})
    return [c for c in template.get("spec", {}).get("containers", []) if "command" in c]


def mermaid(text: str, world: World) -> None:
    """The kind of diagram, and each part closed: what most mistakes come down to."""
    assert text.split(maxsplit=1)[0] in {"flowchart", "sequenceDiagram", "stateDiagram-v2"}
    lines = [line.strip() for line in text.splitlines()]
    assert sum(line.startswith("subgraph ") for line in lines) == lines.count("end")
    for opening, closing in ("[]", "()", "{}"):
        assert text.count(opening) == text.count(closing), f"{opening}{closing} do not match"
    assert text.count('"') % 2 == 0


def fstab(text: str, world: World) -> None:
    """By findmnt, which reads it as mount does."""
    table = world.folder / "fstab"
    table.write_text(world.here(text), encoding="utf-8")
    done = subprocess.run(
        ["findmnt", "--verify", "--tab-file", str(table)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for line in text.splitlines():
        assert len(line.split()) == 6, line


def paths(text: str, world: World) -> None:
    """Paths below the root: each is there, after a chunk was stored."""
    there = [str(path.relative_to(world.kv)) for path in world.kv.rglob("*")]
    for line in text.splitlines():
        path = line.split()[0].removesuffix("/...")
        parts = re.split(r"<\w+>", path.removeprefix("<root>/"))
        pattern = "[^/]+".join(map(re.escape, parts))
        assert any(re.fullmatch(pattern, other) for other in there), f"nothing is like {path}"


def log(text: str, world: World) -> None:
    """Lines of the log: each is one that lmkv writes, filled in with what it fills in."""
    for line in text.splitlines():
        matches = [m for pattern in log_patterns() if (m := re.fullmatch(pattern, line))]
        assert matches, f"lmkv logs no line like {line!r}"
        for value in matches[0].groups():
            assert len(value.split()) < 4 or is_said(value), f"nothing says {value!r}"


def log_patterns() -> list[str]:
    """What may stand in the log: the first arguments of the logger's methods, as patterns."""
    return [
        re.sub(r"%[sd]", "(.+)", re.escape(call.args[0].value))
        for tree in python_sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"info", "warning", "error"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    ]


def is_said(value: str) -> bool:
    """Whether a text in Python or C++ is ``value``, or half of it and the rest filled in."""
    most = len(value) / 2
    for tree in python_sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "" for p in node.values]
                pattern = "".join(re.escape(part) or "(.+)" for part in parts)
                if len("".join(parts)) >= most and re.fullmatch(pattern, value):
                    return True
            elif isinstance(node, ast.Constant) and node.value == value:
                return True
    return any(
        len(literal) >= most and literal in value
        for path in (ROOT / "csrc").rglob("*.[ch]*")
        for literal in re.findall(r'"([^"\n]+)"', path.read_text(encoding="utf-8"))
    )


def python_sources() -> Iterator[ast.Module]:
    for path in sorted((ROOT / "lmkv").rglob("*.py")):
        yield ast.parse(path.read_text(encoding="utf-8"))


KINDS: dict[str, Callable[[str, World], None]] = {
    "console": console,
    "python": python,
    "json": json_block,
    "yaml": yaml_block,
    "mermaid": mermaid,
    "fstab": fstab,
    "text": paths,
    "log": log,
}
