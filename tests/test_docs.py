"""The documentation says what the code does."""

import ctypes
import json
import re
import runpy
import shlex
import struct
import time
from dataclasses import fields
from pathlib import Path

import pytest

from lmkv import _C
from lmkv.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_configuration_page_is_what_the_dataclass_says() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "configuration_page.py"))["page"]()
    assert text_of("docs/configuration.md") == page, (
        "docs/configuration.md is out of date: run .venv/bin/python scripts/configuration_page.py"
    )


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


@pytest.mark.parametrize("name", ["README.md", "docs/configuration.md"])
def test_the_flag_for_vllm_serve_is_one_that_lmkv_takes(name: str) -> None:
    (command,) = re.findall(r"^vllm serve .*?'$", text_of(name), re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", ""))
    config = json.loads(words[words.index("--kv-transfer-config") + 1])
    assert config["kv_connector"] == "LMKVConnector"
    assert config["kv_load_failure_policy"] == "recompute"
    assert Config.from_sources(config["kv_connector_extra_config"], {}).path == "/mnt/kv"


def test_the_guide_names_every_setting_and_no_other() -> None:
    guide = text_of("lmkv/demo/documents/guide.md").partition("## Settings")[2]
    named = re.findall(r"^- `(\w+)`:", guide.partition("\n## ")[0], re.MULTILINE)
    assert named == [field.name for field in fields(Config)]


def test_every_make_target_named_in_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, page


class OneStoredChunk:
    """Stores one chunk of three blocks, two segments each, through the real core."""

    blocks, block_tokens, segment_bytes, token_begin, rank = 3, 32, 1000, 512, 5
    namespace, key = bytes(range(32)), bytes(range(100, 132))

    def __init__(self, root: Path) -> None:
        memory = ctypes.create_string_buffer(2 * self.blocks * self.segment_bytes)
        for i in range(len(memory)):
            memory[i] = i * 7 % 251
        base, span = ctypes.addressof(memory), self.blocks * self.segment_bytes
        engine = _C.Engine(
            _C.EngineOptions(
                root=str(root),
                namespace=self.namespace,
                rank=self.rank,
                segments=[
                    (base, self.segment_bytes, self.segment_bytes),
                    (base + span, self.segment_bytes, self.segment_bytes),
                ],
                block_count=self.blocks,
                block_tokens=self.block_tokens,
                blocks_per_chunk=8,
                host_memory=16 << 20,
            )
        )
        assert engine.store(self.key, self.token_begin, [2, 0, 1])
        assert engine.drain(30)
        deadline = time.monotonic() + 30
        errors = []
        while len(errors) < 2 and time.monotonic() < deadline:
            errors += [event.error for event in engine.poll()]
        assert errors == ["", ""]
        self.stats = engine.stats()
        engine.close()
        raw = memory.raw
        size = self.segment_bytes
        self.payload = b"".join(
            raw[offset : offset + size]
            for block in (2, 0, 1)
            for offset in (block * size, span + block * size)
        )
        self.path = (
            root / "v1" / self.namespace.hex()[:16] / f"r{self.rank}" / self.key.hex()[:3]
        ) / f"{self.key.hex()}.kv"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> OneStoredChunk:
    return OneStoredChunk(tmp_path_factory.mktemp("root"))


def test_file_format_page_describes_the_file_that_the_core_writes(stored: OneStoredChunk) -> None:
    chunk = stored.path.read_bytes()
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| `(\w+)` \|", text_of("docs/file-format.md"), re.MULTILINE
    )
    fields, end = {}, 0
    for offset, size, name in rows:
        assert int(offset) == end, f"a gap before {name}"
        end += int(size)
        fields[name] = chunk[int(offset) : end]
    assert end == 4096

    def number(name: str) -> int:
        return int.from_bytes(fields[name], "little")

    assert fields["magic"] == bytes.fromhex("89 4C 4D 4B 56 0D 0A 1A")
    assert number("version") == 1
    assert number("header_bytes") == 4096
    assert fields["namespace_digest"] == stored.namespace
    assert fields["key"] == stored.key
    assert number("rank") == stored.rank
    assert number("block_tokens") == stored.block_tokens
    assert number("token_begin") == stored.token_begin
    assert number("token_count") == stored.blocks * stored.block_tokens
    assert number("block_count") == stored.blocks
    assert number("block_bytes") == 2 * stored.segment_bytes
    assert number("payload_bytes") == len(stored.payload)
    assert not any(fields["reserved"])
    checksums = struct.unpack("<480Q", fields["block_checksums"])
    assert all(checksums[: stored.blocks])
    assert not any(checksums[stored.blocks :])

    padded = len(stored.payload) + -len(stored.payload) % 4096
    assert chunk[4096:] == stored.payload.ljust(padded, b"\0")
    assert stored.path.stat().st_mode & 0o777 == 0o600


def test_architecture_page_names_counters_that_exist(stored: OneStoredChunk) -> None:
    section = text_of("docs/architecture.md").partition("## When something is wrong")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.rsplit("|", 2)[1])}
    assert named
    assert named <= set(stored.stats)
