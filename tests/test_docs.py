"""The documentation says what the code does."""

import json
import re
import runpy
import shlex
import struct
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lmkv.config import Config
from lmkv.vllm.metrics import SCHEDULER_COUNTERS

sys.path.insert(0, str(Path(__file__).parent))
from stored_chunk import OneStoredChunk

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").glob("*.md")),
]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_configuration_page_is_what_the_dataclass_says() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "configuration_page.py"))["page"]()
    assert text_of("docs/configuration.md") == page, (
        "docs/configuration.md is out of date: run .venv/bin/python scripts/configuration_page.py"
    )


def assert_is_public(url: str) -> None:
    """As much as can be said of a link without following it."""
    parts = urlsplit(url)
    assert parts.scheme == "https", url
    assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]+", parts.netloc), url
    if parts.netloc == "github.com":
        thread = r"/[\w.-]+/[\w.-]+/((issues|pull)/\d+|blob/v[\d.]+/[\w./-]+)"
        assert re.fullmatch(thread, parts.path), url


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if ":" in target:
            assert_is_public(target)
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
    assert Config.from_sources(config["kv_connector_extra_config"], {}).path == ("/mnt/kv",)


def numbers() -> dict[str, Any]:
    return json.loads(text_of("docs/assets/demo.json"))


def test_the_picture_is_drawn_from_the_numbers() -> None:
    draw = runpy.run_path(str(ROOT / "scripts" / "demo_chart.py"))["picture"]
    assert text_of("docs/assets/demo.svg") == draw(numbers()), (
        "docs/assets/demo.svg is out of date: run .venv/bin/python scripts/demo_chart.py"
    )


def test_the_readme_says_what_was_measured() -> None:
    page = text_of("README.md")
    rows = [
        f"| {e['name'].split('-')[0]} {e['name'][-1].upper()} | {e['ttft_first_s']:.2f} s "
        f"| {e['ttft_second_s']:.2f} s | {e['tokens_loaded']:,} of {e['prompt_tokens']:,} |"
        for e in numbers()["engines"]
    ]
    assert re.findall(r"^\| (?:plain|lmkv) [AB] .*$", page, re.MULTILINE) == rows
    for what in ("date", "software", "model"):
        assert numbers()[what].lower() in page.lower()


def test_the_site_builds_without_a_warning_and_has_the_api(tmp_path: Path) -> None:
    done = subprocess.run(
        ["scripts/docs.sh", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in (
        "config.Config",
        "config.Config.from_sources",
        "namespace.Namespace.digest",
        "_C.Engine.load",
    ):
        assert f'id="lmkv.{name}"' in api
    assert "whether every rank" in api  # what the core's stub says of Directory.present
    assert (tmp_path / "decisions" / "0001-file-per-chunk.html").exists()


def test_every_decision_is_listed() -> None:
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", text_of("docs/decisions/README.md"))
    assert sorted(listed) == sorted(p.name for p in (ROOT / "docs/decisions").glob("0*.md"))


# Words of vLLM, the kernel and PyTorch that the pages name.
ELSEWHERE = {"cache_salt", "expandable_segments", "io_uring_setup", "io_uring_enter"}
ELSEWHERE |= {"io_uring_register", "kv_consumer", "kv_producer", "kv_both"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_pages_are_names_in_the_code(page: Path) -> None:
    code = " ".join(
        path.read_text(encoding="utf-8")
        for folder, pattern in (("lmkv", "*.py*"), ("csrc", "*.[ch]*"), ("deploy", "*.yml"))
        for path in (ROOT / folder).rglob(pattern)
        if path.suffix in {".py", ".pyi", ".cpp", ".hpp", ".cu", ".cuh", ".yml"}
    )
    known = set(re.findall(r"\w+", code)) | ELSEWHERE
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", text)
    for span in spans:
        if re.fullmatch(r"[a-z]+(_[a-z]+)+", span):
            assert span in known, f"{span}: no such setting, counter or name"
        if re.fullmatch(r"(csrc|lmkv|docs|scripts|tests|benchmarks|deploy)/[\w./-]*", span):
            assert (ROOT / span).exists(), f"{span} is not there"
        if re.fullmatch(r"LMKV_[A-Z_]+", span):
            settings = {f"LMKV_{field.name.upper()}" for field in fields(Config)}
            of_the_build = re.findall(
                r"^(?:option|set)\((LMKV_\w+)", text_of("CMakeLists.txt"), re.MULTILINE
            )
            assert span in settings | {*of_the_build}, span


def test_what_the_pages_say_of_docker_is_in_deploy() -> None:
    variables = dict(re.findall(r"^(\w+)=(.*)$", text_of("deploy/.env"), re.MULTILINE))
    docker = text_of("docs/quick-start.md").partition("## Docker")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", docker))
    assert len(named) > 5
    assert named <= set(variables)
    (options,) = re.findall(r" nfs (\S+) 0 0$", text_of("docs/tuning.md"), re.MULTILINE)
    assert options == variables["NFS_OPTIONS"]
    images = re.findall(r"^ +image: (\S+)", text_of("docs/quick-start.md"), re.MULTILINE)
    assert images
    for image in images:
        name = image.rpartition("/")[2].partition(":")[0]
        assert f"image: {name}:" in text_of("deploy/docker-compose.yml")


def test_operations_page_names_every_counter_and_no_other() -> None:
    metrics = pytest.importorskip("lmkv.vllm.metrics", reason="vLLM is not installed")
    named = re.findall(r"^\| `(vllm:\w+)` \|", text_of("docs/operations.md"), re.MULTILINE)
    every_metric = metrics.COUNTERS | metrics.GAUGES | metrics.HISTOGRAMS
    assert sorted(named) == sorted(map(metrics.prometheus_name, every_metric))
    every = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"vllm:lmkv_\w+_total", every)) <= set(named)


def test_operations_page_says_of_every_counter_what_to_make_of_it() -> None:
    rows = re.findall(r"^\| `vllm:\w+` \|(.*)\|$", text_of("docs/operations.md"), re.MULTILINE)
    assert rows
    for row in rows:
        assert all(cell.strip() for cell in row.split("|")), row


def test_the_guide_names_every_setting_and_no_other() -> None:
    guide = text_of("lmkv/demo/documents/guide.md").partition("## Settings")[2]
    named = re.findall(r"^- `(\w+)`:", guide.partition("\n## ")[0], re.MULTILINE)
    assert named == [field.name for field in fields(Config)]


def test_every_make_target_named_in_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, page


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
    assert named <= set(stored.stats) | SCHEDULER_COUNTERS.keys()
