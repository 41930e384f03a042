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
FAULT_TOKENS = 600
ROUNDS = 3
NOISE = 0.1  # of a median of so few on a machine that others use
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


def in_service(engine: Any, prompt: list[int]) -> None:
    """Until the tier is asked again, whatever was wrong with it."""
    wait_until_connected(engine, prompt)
    engine.ask("forget")


def test_whatever_becomes_of_it_nobody_waits(
    model: Path, prompt: list[int], s3_port: int, tmp_path: Path
) -> None:
    """Cut off, untrue, slow, silent: answers stay the same, and come about as soon as without."""
    from engine_process import Engine

    proxy = Proxy(s3_port)
    remote = {
        "remote": "s3://bucket/faults",
        "remote_options": s3_options(proxy.port),
        "remote_writes": "write_through",
    }
    manners = ("cut", "untrue", "slow", "silent")
    fresh = iter(prompts_of(prompt[:FAULT_TOKENS], (ROUNDS + 1) * len(manners) + 20))

    def engine(name: str, more: dict[str, Any]) -> Any:
        folder, log = tmp_path / name, tmp_path / f"{name}.log"
        return Engine(model, folder, log, more, environ=CREDENTIALS)

    def cause(manner: str) -> None:
        proxy.is_silent = manner == "silent"
        proxy.delay = 0.5 if manner == "slow" else 0.0
        proxy.flips = manner == "untrue"
        if manner in {"cut", ""}:
            proxy.cut()

    with engine("filler", remote) as filler, engine("alone", {}) as alone:
        filler.generate(prompt[-40:])
        alone.generate(prompt[-40:])
        with engine("b", {**remote, "remote_writes": "on_second_use"}) as second:
            wait_until_connected(filler, prompt)
            wait_until_connected(second, prompt)

            def put_there() -> tuple[list[int], list[int]]:
                """A prompt that the tier has, and its answer."""
                cause("")
                each = next(fresh)
                answer = filler.generate(each)
                assert answer["counters"]["remote_chunks_stored"] > 0
                return each, answer["tokens"]

            # The first load is a trial, which shows how fast the tier is and is given up soon.
            warm = [second.generate(put_there()[0])["counters"] for _ in range(3)]
            assert any("remote_hits" in one for one in warm), warm
            ratios: dict[str, list[float]] = {}
            for manner in manners:
                ratios[manner], met = [], 0.0
                for number in range(ROUNDS + 1):
                    each, tokens = put_there()
                    if number == 0:
                        in_service(second, prompt)
                    cause(manner)
                    answer = second.generate(each)
                    assert answer["tokens"] == tokens, manner
                    counters = answer["counters"]
                    met += counters.get("chunks_bad", 0) + counters.get("lookups_given_up", 0)
                    met += counters.get("remote_hits", 0)
                    if manner in {"slow", "silent"}:
                        assert "tokens_loaded" not in counters
                    cause("")
                    plain = alone.generate(each)
                    assert plain["tokens"] == tokens
                    # The first finds out what it is like: what is damaged has to come for that.
                    if number > 0:
                        ratios[manner].append(answer["ttft"] / plain["ttft"])
                assert met > 0, f"{manner} was passed by"
            # It comes back by itself, and what the next asks for is loaded from there.
            deadline, loaded = time.monotonic() + 120, 0.0
            while not loaded:
                assert time.monotonic() < deadline
                time.sleep(1)
                in_service(second, prompt)
                each, tokens = put_there()
                answer = second.generate(each)
                assert answer["tokens"] == tokens
                loaded = answer["counters"].get("tokens_loaded", 0.0)
    proxy.close()
    # The server and the proxy have these processors, too. What a request would wait for one that
    # hangs is half a minute.
    medians = {manner: statistics.median(found) for manner, found in ratios.items()}
    assert max(medians.values()) < 1.05 + NOISE, ratios
