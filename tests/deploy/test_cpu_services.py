"""The services of the cpu profile run as plain processes: real engines, real health checks.

Two engines at most at once.
"""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose
import pytest
from local_service import LocalService
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("vllm", reason="vLLM is not installed")

from lmkv.vllm.metrics import prometheus_name

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

SERVICES = compose.services("cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Folders here in place of those in the containers."""
    from lmkv.demo.model import prepare_smollm2

    folder = tmp_path_factory.mktemp("container")
    found = {"/mnt/kv": folder / "kv", "/hf": folder / "hf", "/tmp": folder / "home"}
    for path in found.values():
        path.mkdir()
    # test_dockerfile.py makes /opt/lmkv with the Dockerfile's own words; the same is cached here.
    yield {**found, "/opt/lmkv": prepare_smollm2().parents[1]}
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def test_a_plain_engine_becomes_healthy_answers_and_ends_when_asked(
    paths: dict[str, Path], logs: Path
) -> None:
    with LocalService("vllm_cpu_0", SERVICES["vllm_cpu_0"], paths, logs / "vllm") as engine:
        engine.wait_until_healthy()
        assert ask(engine, "Say hello.")
    assert not list(paths["/mnt/kv"].iterdir())


@pytest.fixture(scope="module")
def lmkv_0(paths: dict[str, Path], logs: Path) -> Iterator[LocalService]:
    with LocalService("lmkv_cpu_0", SERVICES["lmkv_cpu_0"], paths, logs / "lmkv_0") as engine:
        engine.wait_until_healthy()
        yield engine


@pytest.fixture(scope="module")
def lmkv_1(paths: dict[str, Path], logs: Path, lmkv_0: LocalService) -> Iterator[LocalService]:
    with LocalService("lmkv_cpu_1", SERVICES["lmkv_cpu_1"], paths, logs / "lmkv_1") as engine:
        engine.wait_until_healthy()
        yield engine


def ask(engine: LocalService, prompt: str) -> str:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine.port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, Any] = json.load(reply)
    text: str = answer["choices"][0]["text"]
    return text


def counter(engine: LocalService, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{engine.port}/metrics", timeout=30) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    wanted = prometheus_name(name).removesuffix("_total")
    return sum(
        sample.value
        for family in families
        if family.name == wanted
        for sample in family.samples
        if sample.name == f"{wanted}_total"
    )


def test_what_one_engine_stored_the_other_loads(
    paths: dict[str, Path], lmkv_0: LocalService, lmkv_1: LocalService
) -> None:
    document = (compose.ROOT / "lmkv" / "demo" / "documents" / "guide.md").read_text()[:5000]
    first = ask(lmkv_0, document)
    deadline = time.monotonic() + 60
    while counter(lmkv_0, "chunks_stored") < 4:
        assert time.monotonic() < deadline, lmkv_0.log[-3000:]
        time.sleep(0.5)
    assert counter(lmkv_0, "tokens_loaded") == 0
    assert list(paths["/mnt/kv"].glob("v1/*/r0/*/*.kv"))
    assert ask(lmkv_1, document) == first
    assert counter(lmkv_1, "tokens_loaded") >= 1024


def test_the_page_becomes_healthy_over_them_and_ends_when_asked(
    paths: dict[str, Path], logs: Path, lmkv_0: LocalService, lmkv_1: LocalService
) -> None:
    others = {"lmkv_cpu_0": lmkv_0.port, "lmkv_cpu_1": lmkv_1.port}
    # Nothing answers for the plain ones: the page is there all the same, and would show it.
    with LocalService("page_cpu", SERVICES["page_cpu"], paths, logs / "page", others) as page:
        page.wait_until_healthy(60)
        with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/", timeout=30) as reply:
            assert b"streamlit" in reply.read().lower()
