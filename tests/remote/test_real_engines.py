"""Real vLLM engines with a directory each: through a real remote engine they share prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import CREDENTIALS, text_of, wait_until_connected
from remote_servers import Where, mooncake, s3_options, seaweedfs

PROMPT_TOKENS = 1100

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model() -> Path:
    from lmkv.demo.model import prepare_smollm2

    return prepare_smollm2()


@pytest.fixture(scope="module")
def prompt(model: Path) -> list[int]:
    return text_of(model, PROMPT_TOKENS)


@pytest.fixture(params=["s3", "mooncake"])
def remote(
    request: pytest.FixtureRequest, networks: dict[str, Where], tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """In a network of its own."""
    more = {"remote_writes": "write_through"}  # counters are whole when a request ends
    server = networks["server"]
    if request.param == "s3":
        with seaweedfs(tmp_path / "server", server) as port:
            options = s3_options(port, server.address)
            yield {"remote": "s3://bucket/real-engines", "remote_options": options, **more}
    else:
        with mooncake(tmp_path / "server", where=server) as options:
            yield {"remote": "mooncake:///real-engines", "remote_options": options, **more}


def answered(engine: Any, prompt: list[int]) -> dict[str, Any]:
    engine.generate(prompt[-40:])  # the first request of an engine is slow for other reasons
    return dict(engine.generate(prompt))


def test_what_one_engine_computed_another_loads(
    model: Path,
    prompt: list[int],
    remote: dict[str, Any],
    networks: dict[str, Where],
    tmp_path: Path,
) -> None:
    """Two hosts: networks of their own, and no directory in common."""
    from engine_process import Engine

    def host(name: str) -> Any:
        folder, log = tmp_path / name, tmp_path / f"{name}.log"
        environ = {**CREDENTIALS, "TEST_NETWORK": networks[name].wrapper[-1]}
        return Engine(model, folder, log, remote, environ=environ)

    # A first load is a trial, and where others have the processors it may be given up as any.
    prompts = prompts_of(prompt, 3)
    with host("a") as first:
        wait_until_connected(first, prompt)
        computed, digests = [], []
        for each in prompts:
            computed.append(answered(first, each))
            digests.append(first.ask("kv", prompt=each))
            assert computed[-1]["counters"]["remote_chunks_stored"] == 5
    with host("b") as second:
        wait_until_connected(second, prompt)
        for n, each in enumerate(prompts):
            loaded = answered(second, each)
            assert loaded["tokens"] == computed[n]["tokens"]
            assert second.ask("kv", prompt=each) == digests[n]
            if "tokens_loaded" in loaded["counters"]:
                break
    assert loaded["counters"]["tokens_loaded"] >= PROMPT_TOKENS - 32
    assert loaded["counters"]["remote_hits"] >= 5  # and what came for one that was given up
    assert loaded["ttft"] < computed[n]["ttft"]


def prompts_of(prompt: list[int], count: int) -> list[list[int]]:
    """No two with a common prefix."""
    return [prompt[n:] + prompt[:n] for n in range(1, count + 1)]
