"""Real vLLM engines with a directory each: through a real remote engine they share prompts."""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from remote_servers import ACCESS_KEY, SECRET_KEY, s3_options
from tcp_proxy import Proxy

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))

PROMPT_TOKENS = 1100
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model() -> Path:
    from lmkv.demo.model import prepare_smollm2

    return prepare_smollm2()


@pytest.fixture(scope="module")
def prompt(model: Path) -> list[int]:
    from tokenizers import Tokenizer

    import lmkv

    folder = Path(lmkv.__file__).parent / "demo" / "documents"
    text = "\n".join(document.read_text() for document in sorted(folder.glob("*.md")))
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    return list(ids[:PROMPT_TOKENS])


@pytest.fixture(params=["s3", "mooncake"])
def remote(request: pytest.FixtureRequest) -> dict[str, Any]:
    more = {"remote_writes": "write_through"}  # counters are whole when a request ends
    if request.param == "s3":
        options = s3_options(request.getfixturevalue("s3_port"))
        return {"remote": "s3://bucket/real-engines", "remote_options": options, **more}
    options = request.getfixturevalue("mooncake_options")
    return {"remote": "mooncake:///real-engines", "remote_options": options, **more}


def answered(engine: Any, prompt: list[int]) -> dict[str, Any]:
    engine.generate(prompt[-40:])  # the first request of an engine is slow for other reasons
    return dict(engine.generate(prompt))


def wait_until_connected(engine: Any, prompt: list[int]) -> None:
    """Both sides of it: nothing is found until then, and nobody waits for that."""
    deadline = time.monotonic() + 120
    while engine.ask("counters").get("remote_lookups_out_of_service", 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        engine.generate(prompt[-40:])


def test_what_one_engine_computed_another_loads(
    model: Path, prompt: list[int], remote: dict[str, Any], tmp_path: Path
) -> None:
    from engine_process import Engine

    # A first load is a trial, and where others have the processors it may be given up as any.
    prompts = prompts_of(prompt, 3)
    with Engine(model, tmp_path / "a", tmp_path / "a.log", remote, environ=CREDENTIALS) as first:
        wait_until_connected(first, prompt)
        computed, digests = [], []
        for each in prompts:
            computed.append(answered(first, each))
            digests.append(first.ask("kv", prompt=each))
            assert computed[-1]["counters"]["remote_chunks_stored"] == 5
    with Engine(model, tmp_path / "b", tmp_path / "b.log", remote, environ=CREDENTIALS) as second:
        wait_until_connected(second, prompt)
        for n, each in enumerate(prompts):
            loaded = answered(second, each)
            assert loaded["tokens"] == computed[n]["tokens"]
            assert second.ask("kv", prompt=each) == digests[n]
            if "tokens_loaded" in loaded["counters"]:
                break
    assert loaded["counters"]["tokens_loaded"] >= PROMPT_TOKENS - 32
    assert loaded["counters"]["remote_hits"] == 5
    assert loaded["ttft"] < computed[n]["ttft"]


def prompts_of(prompt: list[int], count: int) -> list[list[int]]:
    """No two with a common prefix."""
    return [prompt[n:] + prompt[:n] for n in range(1, count + 1)]


def test_whatever_becomes_of_it_nobody_waits(
    model: Path, prompt: list[int], s3_port: int, tmp_path: Path
) -> None:
    """Silent, slow, cut off, untrue: answers stay the same, and come about as soon as without."""
    from engine_process import Engine

    proxy = Proxy(s3_port)
    remote = {
        "remote": "s3://bucket/faults",
        "remote_options": s3_options(proxy.port),
        "remote_writes": "write_through",
    }
    prompts = prompts_of(prompt, 9)
    with Engine(model, tmp_path / "a", tmp_path / "a.log", remote, environ=CREDENTIALS) as first:
        computed = [answered(first, each) for each in prompts]
        without = statistics.median(answer["ttft"] for answer in computed)
    with Engine(model, tmp_path / "b", tmp_path / "b.log", remote, environ=CREDENTIALS) as second:
        answered(second, prompt[-200:])
        # The first load is a trial, which shows how fast the tier is and is given up soon.
        warm = [second.generate(each)["counters"] for each in prompts[5:]]
        assert any("remote_hits" in one for one in warm[1:]), warm
        seconds, counters = {}, {}
        for n, manner in enumerate(("cut", "untrue", "slow", "silent")):
            if manner == "cut":
                proxy.cut()
            proxy.is_silent = manner == "silent"
            proxy.delay = 0.5 if manner == "slow" else 0.0
            proxy.flips = manner == "untrue"
            answer = second.generate(prompts[n])
            assert answer["tokens"] == computed[n]["tokens"], manner
            seconds[manner], counters[manner] = answer["ttft"], answer["counters"]
        proxy.is_silent, proxy.delay = False, 0.0
        # Each was met, and not passed by.
        cut = counters["cut"]
        assert "remote_hits" in cut or cut["lookups_given_up"] > 0, "asked again, in time or not"
        assert counters["untrue"]["chunks_bad"] > 0
        for manner in ("slow", "silent"):
            assert counters[manner]["lookups_given_up"] > 0
            assert "tokens_loaded" not in counters[manner]
        proxy.cut()
        # It comes back by itself, and what the next asks for is loaded from there.
        deadline, loaded = time.monotonic() + 120, 0.0
        while not loaded:
            assert time.monotonic() < deadline
            time.sleep(2)
            second.ask("forget")
            answer = second.generate(prompts[4])
            assert answer["tokens"] == computed[4]["tokens"]
            loaded = answer["counters"].get("tokens_loaded", 0.0)
    proxy.close()
    # The machine is shared, and the server and the proxy have its processors, too; what a request
    # would wait for one that hangs is half a minute.
    for manner, taken in seconds.items():
        # What is damaged is known when it has come, twice, and is computed then.
        most = 2.5 if manner == "untrue" else 1.5
        assert taken < most * without + 0.3, (manner, seconds, without)
