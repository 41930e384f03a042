"""The engines behind the page: started by this demo, or running already."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from lmkv.demo import http
from lmkv.demo.engines import State
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet, too_slow
from lmkv.demo.launch import SERVED_NAME

KINDS = {"plain": "plain vLLM", "lmkv": "vLLM w/ lmkv"}
_FAILURES_OF_THE_DEAD = 3
_HEALTH_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class EngineView:
    """What people may know of one engine at one moment.

    `state` is "starting", "ready" or "dead"; `stage` says what a starting engine does, and
    `elapsed_s` for how long. `error` is there when it is dead. `model` is the name that requests
    give.
    """

    name: str
    kind: str
    base_url: str
    state: str
    stage: str = ""
    elapsed_s: float = 0.0
    error: DemoError | None = None
    model: str = SERVED_NAME

    @property
    def title(self) -> str:
        """For people: "plain vLLM A"."""
        return f"{KINDS[self.kind]} {self.name.rpartition('-')[2].upper()}"

    @property
    def ready(self) -> bool:
        """Whether it takes questions."""
        return self.state == "ready"

    @property
    def port(self) -> int | None:
        """The port of its address."""
        return urlsplit(self.base_url).port


class Backend(Protocol):
    """All engines of one page. One thread calls all of this; calls block for seconds at most."""

    can_restart: bool

    def look(self) -> list[EngineView]:
        """The engines now, always in the same order."""

    def restart(self, name: str) -> None:
        """Stops that engine and has it start afresh."""


class OwnedEngines:
    """The engines of a `Fleet`, whose end is up to whoever made that."""

    can_restart = True

    def __init__(self, fleet: Fleet, timeout_s: float = 900.0) -> None:
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._deaths: dict[str, DemoError] = {}

    def look(self) -> list[EngineView]:
        """Starts those whose turn it is, looks at all, and gives up those that take too long."""
        self._deaths |= self._fleet.advance()
        for engine in self._fleet:
            if engine.state is State.STARTING and engine.elapsed_s > self._timeout_s:
                self._deaths[engine.spec.name] = too_slow(engine, self._timeout_s)
                engine.stop()
        views = []
        for engine in self._fleet:
            spec, starting = engine.spec, engine.state in (State.NEW, State.STARTING)
            dead = engine.state in (State.DEAD, State.STOPPED)
            views.append(
                EngineView(
                    name=spec.name,
                    kind=spec.kind,
                    base_url=spec.base_url,
                    state="starting" if starting else "dead" if dead else "ready",
                    stage="" if not starting else self._stage(engine.state, engine.stage),
                    elapsed_s=engine.elapsed_s,
                    error=self._deaths.get(spec.name) if dead else None,
                )
            )
        return views

    @staticmethod
    def _stage(state: State, stage: Callable[[], str]) -> str:
        return "waiting for its turn on the GPU" if state is State.NEW else stage()

    def restart(self, name: str) -> None:
        """Blocks until nothing of the old one is left."""
        self._fleet.renew(name)
        self._deaths.pop(name, None)


@dataclass
class _Attached:
    name: str
    kind: str
    base_url: str
    model: str = ""
    seen: bool = False
    failures: int = 0
    since: float = 0.0


class AttachedEngines:
    """Engines that somebody else started, at `addresses`: pairs of URL and kind."""

    can_restart = False

    def __init__(self, addresses: Sequence[tuple[str, str]]) -> None:
        self._engines: list[_Attached] = []
        for url, kind in addresses:
            letter = "abcdefghijklmnopqrstuvwxyz"[sum(e.kind == kind for e in self._engines)]
            self._engines.append(_Attached(f"{kind}-{letter}", kind, url, since=time.monotonic()))

    def look(self) -> list[EngineView]:
        """Asks all for their health."""
        return [self._look(engine) for engine in self._engines]

    def _look(self, engine: _Attached) -> EngineView:
        try:
            http.client().get(
                f"{engine.base_url}/health", timeout=_HEALTH_TIMEOUT_S
            ).raise_for_status()
            engine.model = engine.model or _served_model(engine.base_url)
            engine.failures, engine.seen = 0, True
        except (httpx.HTTPError, LookupError, TypeError, ValueError):
            engine.failures += 1
            engine.model = ""  # what comes back may serve another
        error = None
        state = "starting" if engine.failures else "ready"
        if engine.seen and engine.failures >= _FAILURES_OF_THE_DEAD:
            state = "dead"
            error = DemoError(
                f"{engine.name} at {engine.base_url} does not answer any more",
                hint="start it again; the page notices when it is back",
            )
        return EngineView(
            name=engine.name,
            kind=engine.kind,
            base_url=engine.base_url,
            state=state,
            stage="does not answer" if engine.seen else "no answer yet",
            elapsed_s=time.monotonic() - engine.since,
            error=error,
            model=engine.model or SERVED_NAME,
        )

    def restart(self, name: str) -> None:
        """Not ours to restart."""
        raise DemoError(f"{name} was started by somebody else", hint="restart it there")


def _served_model(base_url: str) -> str:
    answer = http.client().get(f"{base_url}/v1/models", timeout=_HEALTH_TIMEOUT_S)
    answer.raise_for_status()
    return str(answer.json()["data"][0]["id"])


def parse_attach(text: str) -> list[tuple[str, str]]:
    """Pairs of URL and kind from `URL=kind,URL=kind`; raises `DemoError`."""
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        url, _, kind = part.rpartition("=")
        address = urlsplit(url)
        try:
            address.port  # noqa: B018 - raises for what is no port
        except ValueError:
            kind = ""
        if kind not in KINDS or address.scheme not in ("http", "https") or not address.hostname:
            raise DemoError(
                f"{part!r} is not an address and a kind of engine",
                hint="write --attach http://host:8000=plain,http://host:8002=lmkv",
            )
        pairs.append((url.rstrip("/").removesuffix("/v1"), kind))
    if not pairs:
        raise DemoError(
            "no engine to attach to",
            hint="write --attach http://host:8000=plain,http://host:8002=lmkv",
        )
    if any(sum(kind == wanted for _, kind in pairs) > 26 for wanted in KINDS):
        raise DemoError("more than 26 engines of a kind")
    return pairs
