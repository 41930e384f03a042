"""The experiment: the same question to every engine, twice, and what each answer took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lmkv.demo.ask import Answer, Asker, Message
from lmkv.demo.engines import EngineProcess
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet

_CHUNK_TOKENS = 256  # lmkv's default, which the demo's engines use
_STORE_PATIENCE_S = 30.0
_DEATH_PATIENCE_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """What one engine did: `first` is the first time it saw the document, `second` the repeat.

    `stored_s`: seconds after the first answer until its KV was in the directory, for the lmkv
    engine that computed it; None when that did not happen in time.
    """

    name: str
    kind: str
    ready_s: float
    first: Answer
    second: Answer
    stored_s: float | None = None


@dataclass(frozen=True)
class Results:
    """All engines, in the order in which they were asked."""

    engines: tuple[Measured, ...]

    @property
    def speedup(self) -> float | None:
        """First answer of the last plain engine over that of the last lmkv engine."""
        plain = [engine.first.ttft_s for engine in self.engines if engine.kind == "plain"]
        lmkv = [engine.first.ttft_s for engine in self.engines if engine.kind == "lmkv"]
        return plain[-1] / lmkv[-1] if plain and lmkv else None

    @property
    def answers_equal(self) -> bool:
        """Whether every engine gave the same text, both times."""
        texts = {answer.text for engine in self.engines for answer in (engine.first, engine.second)}
        return len(texts) == 1


def measure(
    fleet: Fleet,
    directory: Path | None,
    messages: Sequence[Message],
    max_tokens: int,
    tell: Callable[[str], None],
) -> Results:
    """Asks the engines one after the other; `tell` gets a line for people before each step.

    Raises `DemoError` when an engine dies or refuses.
    """
    askers = [(engine, Asker(engine.spec.base_url)) for engine in fleet]
    tell("warming up")
    for engine, asker in askers:
        _named(engine, fleet, asker.warm_up)
    measured = []
    for engine, asker in askers:
        name = engine.spec.name

        def ask(engine: EngineProcess = engine, asker: Asker = asker) -> Answer:
            fleet.settle()
            return _named(engine, fleet, lambda: asker.ask(messages, max_tokens))

        tell(f"asking {name}, which has not seen the document")
        first = ask()
        stored_s = None
        if engine.spec.kind == "lmkv" and directory is not None:
            tell(f"waiting for {name} to finish storing")
            stored_s = wait_until_stored(directory, first.prompt_tokens)
        tell(f"asking {name} again")
        measured.append(Measured(name, engine.spec.kind, engine.ready_s, first, ask(), stored_s))
    return Results(tuple(measured))


def wait_until_stored(
    directory: Path, tokens: int, patience_s: float = _STORE_PATIENCE_S
) -> float | None:
    """Seconds until the directory held the whole chunks of a prompt of `tokens` tokens.

    The evidence is the files: as many as the prompt has whole chunks, none still being written,
    and no new one for half a second. None when that did not happen within `patience_s`.
    """
    start = time.monotonic()
    seen, since = (-1, True), start
    while (now := time.monotonic()) - start < patience_s:
        state = (sum(1 for _ in directory.glob("v1/*/r*/*/*.kv")), _writing(directory))
        if state != seen:
            seen, since = state, now
        stored, writing = state
        if stored >= tokens // _CHUNK_TOKENS and not writing and now - since >= 0.5:
            return since - start
        time.sleep(0.05)
    return None


def _writing(directory: Path) -> bool:
    return any(file.suffix != ".kv" for file in directory.glob("v1/*/r*/???/*"))


def _named(engine: EngineProcess, fleet: Fleet, act: Callable[[], T]) -> T:
    """Runs `act`; when it fails, says of which engine, and whether that died."""
    try:
        return act()
    except DemoError as error:
        if error.hint:  # the engine is well, the question is not
            raise DemoError(f"{engine.spec.name}: {error.message}", hint=error.hint) from error
        deadline = time.monotonic() + _DEATH_PATIENCE_S
        while time.monotonic() < deadline:  # a dying engine fails requests before it is gone
            fleet.check()
            time.sleep(0.1)
        raise DemoError(f"{engine.spec.name}: {error.message}", log=engine.last_lines()) from error
