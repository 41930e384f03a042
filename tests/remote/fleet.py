"""Real vLLM engines around one remote tier that fails as it is told to: how long requests take."""

import itertools
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from remote_servers import ACCESS_KEY, SECRET_KEY, s3_options
from tcp_proxy import Proxy

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))

PROMPT_TOKENS = 600
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

# Of an answer's pieces of 64 KiB, each.
SLOW_SECONDS = 0.5

MANNERS = {
    "cut": "each connection there is is closed before a request",
    "gone": "nobody listens",
    "untrue": "a bit of every piece of an answer is another one",
    "slow": "each piece of an answer takes half a second",
    "silent": "nothing comes, and nothing is closed",
}


def text_of(model: Path, tokens: int) -> list[int]:
    """The beginning of the demo's documents."""
    from tokenizers import Tokenizer

    import lmkv

    folder = Path(lmkv.__file__).parent / "demo" / "documents"
    text = "\n".join(document.read_text() for document in sorted(folder.glob("*.md")))
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    return list(ids[:tokens])


def wait_until_connected(engine: Any, prompt: list[int]) -> None:
    """Both sides of it: nothing is found until then, and nobody waits for that."""
    deadline = time.monotonic() + 120
    while engine.ask("counters").get("remote_lookups_out_of_service", 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        engine.generate(prompt[-40:])


class Turn(NamedTuple):
    """One request: what it counted, its TTFT, and that of one that loads nothing, on the same
    engine (two of one kind differ by some per cent by how their memory happens to lie).
    """

    counters: dict[str, float]
    with_it: float
    without: float


class Fleet:
    """An engine that fills the tier, and one that has it behind a proxy."""

    def __init__(self, ends: ExitStack, model: Path, folder: Path, port: int) -> None:
        """``port``: of an S3 server on loopback. All of it ends with ``ends``."""
        from engine_process import Engine

        self.proxy = Proxy(port)
        ends.callback(self.proxy.close)
        place = {"remote": "s3://bucket/faults"}
        direct = {"remote_options": s3_options(port), "remote_writes": "write_through"}
        behind = {"remote_options": s3_options(self.proxy.port), "remote_writes": "on_second_use"}
        self._prompt = text_of(model, PROMPT_TOKENS)
        found = []
        for name, more in (("filler", direct), ("behind", behind)):
            settings = {**place, **more}
            log = folder / f"{name}.log"
            engine = Engine(model, folder / name, log, settings, environ=CREDENTIALS)
            found.append(ends.enter_context(engine))
            found[-1].generate(self._prompt[-40:])
        self.filler, self.behind = found
        self._numbers = itertools.count(1)
        for engine in (self.filler, self.behind):
            wait_until_connected(engine, self._prompt)

    def warm_up(self) -> None:
        """The first load is a trial, which shows how fast the tier is and is given up soon."""
        warm = [self.behind.generate(self.put_there()[0])["counters"] for _ in range(3)]
        assert any("remote_hits" in one for one in warm), warm

    def put_there(self) -> tuple[list[int], list[int]]:
        """A new prompt that the tier has, and its answer."""
        each = self._new()
        answer = self.filler.generate(each)
        assert answer["counters"]["remote_chunks_stored"] > 0
        return each, answer["tokens"]

    def _new(self) -> list[int]:
        number = next(self._numbers)
        assert number < PROMPT_TOKENS, "no two have a common prefix"
        return self._prompt[number:] + self._prompt[:number]

    def cause(self, manner: str) -> None:
        """One of MANNERS, until another is caused; ``""``: none."""
        self.proxy.is_silent = manner == "silent"
        self.proxy.delay = SLOW_SECONDS if manner == "slow" else 0.0
        self.proxy.flips = manner == "untrue"
        if manner == "gone":
            self.proxy.refuse()
        else:
            self.proxy.listen()
            self.proxy.cut()

    def turn(self, manner: str, number: int) -> Turn:
        """Request ``number`` of those behind a tier that fails in this manner: the first is the one
        that finds out.
        """
        each, tokens = self.put_there()
        if number == 0:
            self.cause("")
            wait_until_connected(self.behind, self._prompt)
        if manner and (number == 0 or manner == "cut"):
            self.cause(manner)
        loads_nothing = {"prompt": self._new(), "control": {"load": False}}
        if number % 2:
            without = self.behind.generate(**loads_nothing)
        answer = self.behind.generate(each)
        if not number % 2:
            without = self.behind.generate(**loads_nothing)
        assert answer["tokens"] == tokens, manner
        return Turn(answer["counters"], answer["ttft"], without["ttft"])

    def recovery(self) -> float:
        """Seconds until something is loaded from the tier, from now on, when nothing fails."""
        self.cause("")
        begin, loaded = time.monotonic(), 0.0
        while not loaded:
            assert time.monotonic() - begin < 180
            wait_until_connected(self.behind, self._prompt)
            each, tokens = self.put_there()
            answer = self.behind.generate(each)
            assert answer["tokens"] == tokens
            loaded = answer["counters"].get("remote_hits", 0.0)
        return time.monotonic() - begin
