"""The engines behind the page: started by this demo, or running already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from lmkv.demo import http
from lmkv.demo.engines import EngineProcess, State
from lmkv.demo.errors import DemoError
from lmkv.demo.fleet import Fleet, too_slow
from lmkv.demo.launch import SERVED_NAME

KINDS = {"plain": "plain vLLM", "lmkv": "vLLM w/ lmkv"}
STOPPING = "stopping the old one"
"""The stage of an engine that is restarted, while the process before is ending."""

_FAILURES_OF_THE_DEAD = 3
_HEALTH_TIMEOUT_S = 2.0
_RESTART_OR_WAIT = (
    "restart it; if it only needs longer, as for a model that is still downloading, start the "
    "demo with a larger --timeout"
)


@dataclass(frozen=True)
class EngineView:
    """What people may know of one engine at one moment.

    `state` is "starting", "ready" or "dead"; `stage` says what a starting engine does, and
    `elapsed_s` for how long. Of a dead one `stage` may say in which sense it is. `error` is there
    when it is dead. `model` is the name that requests give.
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
    """All engines of one page. One thread calls all of this; a call blocks for seconds at most."""

    can_restart: bool

    def look(self) -> list[EngineView]:
        """The engines now, always in the same order."""

    def restart(self, name: str) -> None:
        """Has that engine stopped and started afresh; returns at once, and `look` does the rest."""


class OwnedEngines:
    """The engines of a `Fleet`, whose end is up to whoever made that."""

    can_restart = True

    def __init__(self, fleet: Fleet, timeout_s: float = 900.0) -> None:
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._deaths: dict[str, DemoError] = {}

    def look(self) -> list[EngineView]:
        """Starts those whose turn it is, looks at all, and gives up those that take too long."""
        for name, death in self._fleet.advance().items():
            self._deaths[name] = _with_hint(death, death.hint or "restart it")
        for engine in self._fleet:
            if engine.state is State.STARTING and engine.elapsed_s > self._timeout_s:
                late = too_slow(engine, self._timeout_s)
                self._deaths[engine.spec.name] = _with_hint(late, _RESTART_OR_WAIT)
                engine.request_stop()
        return [self._view(engine) for engine in self._fleet]

    def _view(self, engine: EngineProcess) -> EngineView:
        spec, stage, error = engine.spec, "", None
        if self._fleet.is_renewed(spec.name):
            state, stage = "starting", STOPPING
        elif engine.state is State.NEW:
            state, stage = "starting", "waiting for its turn on the GPU"
        elif engine.state is State.STARTING:
            state, stage = "starting", engine.stage()
        elif engine.state is State.READY:
            state = "ready"
        else:
            state, error = "dead", self._deaths.get(spec.name)
        return EngineView(
            name=spec.name,
            kind=spec.kind,
            base_url=spec.base_url,
            state=state,
            stage=stage,
            elapsed_s=engine.elapsed_s,
            error=error,
        )

    def restart(self, name: str) -> None:
        """Tells it to end; a later `look` starts it afresh, when nothing of the old one is left."""
        self._fleet.renew(name)
        self._deaths.pop(name, None)


def _with_hint(error: DemoError, hint: str) -> DemoError:
    return DemoError(error.message, hint=hint, log=error.log)


@dataclass
class _Attached:
    name: str
    kind: str
    base_url: str
    model: str = ""
    seen: bool = False
    failures: int = 0
    since: float = 0.0  # the last answer, or the first look


class AttachedEngines:
    """Engines that somebody else started, at `addresses`: pairs of URL and kind.

    One that has not answered for `timeout_s` since the first look is called dead, until it does.
    """

    can_restart = False

    def __init__(self, addresses: Sequence[tuple[str, str]], timeout_s: float = 900.0) -> None:
        self._timeout_s = timeout_s
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
            engine.since = time.monotonic()
        except (httpx.HTTPError, LookupError, TypeError, ValueError):
            engine.failures += 1
            engine.model = ""  # what comes back may serve another
        error = self._silence(engine)
        if not engine.failures:
            state, stage = "ready", ""
        elif error is not None:
            state, stage = "dead", "not answering"
        else:
            state, stage = "starting", "does not answer" if engine.seen else "no answer yet"
        return EngineView(
            name=engine.name,
            kind=engine.kind,
            base_url=engine.base_url,
            state=state,
            stage=stage,
            elapsed_s=time.monotonic() - engine.since,
            error=error,
            model=engine.model or SERVED_NAME,
        )

    def _silence(self, engine: _Attached) -> DemoError | None:
        """What is to be said of an engine that has been silent for too long; None of others."""
        where = f"{engine.name} at {engine.base_url}"
        if engine.seen and engine.failures >= _FAILURES_OF_THE_DEAD:
            return DemoError(
                f"{where} does not answer any more",
                hint="start it again; the page notices when it is back",
            )
        if not engine.seen and time.monotonic() - engine.since > self._timeout_s:
            return DemoError(
                f"{where} has not answered for {self._timeout_s:.0f} s",
                hint="start it, or give --attach the right address; the page notices an answer",
            )
        return None

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
