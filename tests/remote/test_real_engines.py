"""Real vLLM engines with a directory each: through a real remote engine they share prompts."""

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from remote_servers import ACCESS_KEY, SECRET_KEY, Where, mooncake, s3_options, seaweedfs
from tcp_proxy import Proxy

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))

PROMPT_TOKENS = 1100
FAULT_TOKENS = 600
ROUNDS = 3

# What a request takes behind a tier that fails, of what it takes without one; the first, which
# finds that out; and what the server, the proxy and others on this machine may add.
SHARE, FIRST, NOISE_SECONDS = 1.05, 3.0, 0.15
MET = ("chunks_bad", "lookups_given_up", "remote_hits")
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


def wait_until_connected(engine: Any, prompt: list[int]) -> None:
    """Both sides of it: nothing is found until then, and nobody waits for that."""
    deadline = time.monotonic() + 120
    while engine.ask("counters").get("remote_lookups_out_of_service", 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        engine.generate(prompt[-40:])


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


class Fleet:
    """An engine that fills the tier, one that has none, and one that has it behind a proxy."""

    def __init__(self, ends: ExitStack, model: Path, folder: Path, prompt: list[int], port: int):
        from engine_process import Engine

        self.proxy = Proxy(port)
        ends.callback(self.proxy.close)
        place = {"remote": "s3://bucket/faults"}
        direct = {"remote_options": s3_options(port), "remote_writes": "write_through"}
        behind = {"remote_options": s3_options(self.proxy.port), "remote_writes": "on_second_use"}
        found = []
        for name, more in (
            ("filler", {**place, **direct}),
            ("alone", {}),
            ("behind", {**place, **behind}),
        ):
            engine = Engine(model, folder / name, folder / f"{name}.log", more, environ=CREDENTIALS)
            found.append(ends.enter_context(engine))
            found[-1].generate(prompt[-40:])
        self.filler, self.alone, self.behind = found
        self._prompt = prompt
        self._numbers = itertools.count(1)
        for engine in (self.filler, self.behind):
            wait_until_connected(engine, prompt)

    def put_there(self) -> tuple[list[int], list[int]]:
        """A new prompt that the tier has, and its answer."""
        number = next(self._numbers) % FAULT_TOKENS
        each = self._prompt[number:FAULT_TOKENS] + self._prompt[:number]
        answer = self.filler.generate(each)
        assert answer["counters"]["remote_chunks_stored"] > 0
        return each, answer["tokens"]

    def cause(self, manner: str) -> None:
        """Until another is caused."""
        self.proxy.is_silent = manner == "silent"
        self.proxy.delay = 0.5 if manner == "slow" else 0.0
        self.proxy.flips = manner == "untrue"
        self.proxy.cut()

    def wait_until_in_service(self) -> None:
        wait_until_connected(self.behind, self._prompt)

    def turn(self, manner: str, number: int) -> tuple[dict[str, float], float, float]:
        """What one request counts, its TTFT, and that of an engine alone."""
        each, tokens = self.put_there()
        if number == 0:
            self.cause("")
            self.wait_until_in_service()
        if number == 0 or manner == "cut":
            self.cause(manner)
        seconds, counters = {}, {}
        names = ["behind", "alone"]
        for name in names if number % 2 else reversed(names):
            answer = getattr(self, name).generate(each)
            assert answer["tokens"] == tokens, manner
            seconds[name], counters[name] = answer["ttft"], answer["counters"]
        return counters["behind"], seconds["behind"], seconds["alone"]


def test_whatever_becomes_of_it_nobody_waits(
    model: Path, prompt: list[int], s3_port: int, tmp_path: Path
) -> None:
    """Cut off, untrue, slow, silent: answers stay the same, and come about as soon as without."""
    with ExitStack() as ends:
        fleet = Fleet(ends, model, tmp_path, prompt, s3_port)
        # The first load is a trial, which shows how fast the tier is and is given up soon.
        warm = [fleet.behind.generate(fleet.put_there()[0])["counters"] for _ in range(3)]
        assert any("remote_hits" in one for one in warm), warm
        excess: dict[str, list[float]] = {}
        for manner in ("cut", "untrue", "slow", "silent"):
            excess[manner], met = [], 0.0
            for number in range(ROUNDS + 1):
                counters, with_it, alone = fleet.turn(manner, number)
                met += sum(counters.get(name, 0) for name in MET)
                if manner in {"slow", "silent"}:
                    assert "tokens_loaded" not in counters
                # The first finds out what it is like: what is damaged has to come for that.
                assert with_it < FIRST * alone + NOISE_SECONDS, manner
                if number > 0:
                    excess[manner].append(with_it - SHARE * alone)
            assert met > 0, f"{manner} was passed by"
        # It comes back by itself, and what the next asks for is loaded from there.
        fleet.cause("")
        deadline, loaded = time.monotonic() + 180, 0.0
        while not loaded:
            assert time.monotonic() < deadline
            fleet.wait_until_in_service()
            each, tokens = fleet.put_there()
            answer = fleet.behind.generate(each)
            assert answer["tokens"] == tokens
            loaded = answer["counters"].get("remote_hits", 0.0)
    # What a request would wait for one that hangs is half a minute.
    assert max(statistics.median(found) for found in excess.values()) < NOISE_SECONDS, excess
