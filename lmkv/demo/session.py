"""The state behind the page, the same for every browser that looks at it."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import httpx

from lmkv.demo import http, metrics
from lmkv.demo.ask import Answer, Asker
from lmkv.demo.backends import STOPPING, Backend, EngineView
from lmkv.demo.counters import Activity, CounterLog
from lmkv.demo.document import DEFAULT_QUESTION, Document
from lmkv.demo.errors import DemoError

_LOOK_EVERY_S = 0.5
_COUNT_EVERY_S = 2.0
_FAILURE_SHOWN_S = 30.0
_LOW_SPACE = 0.05  # a share of the filesystem


@dataclass(frozen=True)
class Query:
    """One question to one engine, as it is at one moment.

    `group`: questions that were asked at once have the same one. `ordinal`: the how-manieth this
    is to this engine about this document since the cache was cleared the last time, from 1; those
    that failed do not count. `epoch`: how often it had been cleared. `state`: "waiting",
    "answering", "done" or "failed".
    """

    number: int
    group: int
    epoch: int
    ordinal: int
    engine: EngineView
    document: Document
    question: str
    state: str = "waiting"
    answer: Answer = field(default_factory=Answer)
    error: DemoError | None = None

    @property
    def running(self) -> bool:
        """Whether more is to come."""
        return self.state in ("waiting", "answering")


class Session:
    """Engines, questions and counters of one page; a context manager. All methods: any thread.

    One thread of its own watches the engines, and one for each engine asks it, one question after
    the other. `directory`: where the lmkv engines keep KV, if that is known; `owns_directory`:
    nobody else keeps anything there. `document`: one to offer before those that come with the demo,
    and `question` what to ask first.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        directory: Path | None = None,
        owns_directory: bool = False,
        document: Document | None = None,
        question: str = DEFAULT_QUESTION,
        max_tokens: int = 48,
    ) -> None:
        self._backend = backend
        self.directory = directory
        self.owns_directory = owns_directory
        self.document = document
        self.question = question
        self.can_restart = backend.can_restart
        self._max_tokens = max_tokens
        self._counted = 0.0
        self._log = CounterLog(from_zero=backend.can_restart)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="lmkv-demo-watch", daemon=True)
        self._lines: dict[str, SimpleQueue[Callable[[], None]]] = {}

        self._lock = threading.Lock()  # of all below
        self._views: list[EngineView] = []
        self._restarts: list[str] = []
        self._queries: list[Query] = []
        self._salt = secrets.token_hex(8)
        self._epoch = 0
        self._activity = Activity()
        self._failed_until = 0.0
        self._fault: DemoError | None = None

    def __enter__(self) -> Session:  # noqa: PYI034 - typing.Self is Python 3.11's
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watcher.join()

    # -- what the page shows -------------------------------------------------------------

    def engines(self) -> list[EngineView]:
        """All engines, always in the same order; empty for an instant after the start."""
        with self._lock:
            return list(self._views)

    def queries(self) -> list[Query]:
        """All questions so far, oldest first."""
        with self._lock:
            return [replace(query, answer=replace(query.answer)) for query in self._queries]

    @property
    def epoch(self) -> int:
        """How often the cache was cleared."""
        with self._lock:
            return self._epoch

    def activity(self) -> Activity:
        """What the lmkv engines have stored and loaded, a few seconds old at most."""
        with self._lock:
            return self._activity

    def trouble(self) -> list[DemoError]:
        """What is wrong now and not the matter of one question: sentences for people."""
        found = [view.error for view in self.engines() if view.error is not None]
        with self._lock:
            if self._fault is not None:
                found.append(self._fault)
            failing = time.monotonic() < self._failed_until
        if failing:
            failed = int(self.activity().totals.stores_failed)
            found.append(_failing(failed, self.directory, clearing_helps=self.owns_directory))
        return found

    # -- what people do ------------------------------------------------------------------

    def ask(self, names: Sequence[str], document: Document, question: str) -> None:
        """Puts the question to these engines, to all of them at once; returns at once."""
        messages = document.messages(question)
        with self._lock:
            views = {view.name: view for view in self._views}
            group, salt = len(self._queries), self._salt
            for name in names:
                ordinal = 1 + sum(
                    (query.engine.name, query.document, query.epoch)
                    == (name, document, self._epoch)
                    for query in self._queries
                    if query.state != "failed"
                )
                number = len(self._queries)
                self._queries.append(
                    Query(number, group, self._epoch, ordinal, views[name], document, question)
                )
                self._in_line(name, partial(self._answer, number, messages, salt))

    def restart(self, name: str) -> None:
        """Has the engine of that name stopped and started afresh; returns at once."""
        with self._lock:
            if any(view.name == name and view.stage == STOPPING for view in self._views):
                return  # it is on its way
            self._restarts.append(name)
            self._views = [
                replace(view, state="starting", stage=STOPPING, elapsed_s=0.0, error=None)
                if view.name == name
                else view
                for view in self._views
            ]

    def clear(self) -> None:
        """From now on nothing that was computed before is used, by no engine.

        Questions get another salt, so that neither vLLM's own prefix caches nor what lmkv has
        stored can answer. The chunks are deleted too where the directory is this demo's alone.
        """
        with self._lock:
            self._salt = secrets.token_hex(8)
            self._epoch += 1
        if self.owns_directory and self.directory is not None:
            for chunk in self.directory.glob("v1/*/r*/*/*.kv"):
                chunk.unlink(missing_ok=True)

    def count_tokens(self, text: str) -> int | None:
        """How many tokens `text` has, asked of the first engine that answers; None if none does.

        Blocks for two seconds at most for each engine that is ready.
        """
        for view in self.engines():
            if not view.ready:
                continue
            request = {"model": view.model, "prompt": text}
            with contextlib.suppress(httpx.HTTPError, LookupError, TypeError, ValueError):
                answer = http.client().post(f"{view.base_url}/tokenize", json=request, timeout=2.0)
                answer.raise_for_status()
                return int(answer.json()["count"])
        return None

    # -- own threads ---------------------------------------------------------------------

    def _in_line(self, name: str, act: Callable[[], None]) -> None:
        """Has the engine's asking thread call `act` when its turn comes. Caller: holds the lock.

        A daemon: the end of this process does not wait for an engine that never answers.
        """
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = SimpleQueue()
            threading.Thread(
                target=_serve_line, args=(line,), name=f"lmkv-demo-{name}", daemon=True
            ).start()
        line.put(act)

    def _answer(self, number: int, messages: list[dict[str, str]], salt: str) -> None:
        """On the engine's asking thread."""
        with self._lock:
            name = self._queries[number].engine.name
            view = next(view for view in self._views if view.name == name)
        if not view.ready:
            hint = view.error.hint if view.error is not None else "wait for it"
            error = DemoError(f"{view.title} is not ready", hint=hint)
            return self._update(number, state="failed", error=error)
        try:
            asker = Asker(view.base_url, view.model)
            for answer in asker.stream(messages, self._max_tokens, salt):
                self._update(number, state="answering", answer=answer)
        except DemoError as error:
            message = f"{view.title}: {error.message}"
            return self._update(
                number, state="failed", error=DemoError(message, hint=error.hint, log=error.log)
            )
        except Exception as error:  # noqa: BLE001 - else the question would wait for ever
            message = f"{view.title}: the question failed ({error!r})"
            return self._update(number, state="failed", error=DemoError(message))
        return self._update(number, state="done")

    def _update(self, number: int, **changes: object) -> None:
        with self._lock:
            self._queries[number] = replace(self._queries[number], **changes)  # type: ignore[arg-type]

    def _watch(self) -> None:
        """On the watching thread, until the session ends."""
        while not self._ended.wait(_LOOK_EVERY_S):
            fault = None
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - else old states would be shown for ever
                fault = DemoError(f"the engines cannot be watched: {error!r}")
            with self._lock:
                self._fault = fault

    def _look(self) -> None:
        with self._lock:
            restarts, self._restarts = self._restarts, []
        for name in restarts:
            self._backend.restart(name)
        views = self._backend.look()
        self._warm_up([view for view in views if view.ready])
        with self._lock:
            if not self._restarts:  # or they would seem ready for a moment
                self._views = views
        if time.monotonic() - self._counted > _COUNT_EVERY_S:
            self._count([view for view in views if view.ready and view.kind == "lmkv"])

    def _warm_up(self, ready: list[EngineView]) -> None:
        """Has those that have just become ready pay for what only a first request pays for."""
        with self._lock:
            known = {view.name for view in self._views if view.ready}
            for view in ready:
                if view.name not in known:
                    self._in_line(view.name, partial(self._warm, view))

    @staticmethod
    def _warm(view: EngineView) -> None:
        with contextlib.suppress(Exception):  # it is the first question that will say why
            Asker(view.base_url, view.model).warm_up()

    def _count(self, views: list[EngineView]) -> None:
        readings = {}
        for view in views:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                readings[view.name] = metrics.read(view.base_url, timeout_s=2.0)
        activity = self._log.add(readings)
        self._counted = time.monotonic()
        with self._lock:
            if activity.totals.stores_failed > self._activity.totals.stores_failed:
                self._failed_until = time.monotonic() + _FAILURE_SHOWN_S
            self._activity = activity


def _serve_line(line: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        line.get()()


def _failing(failed: int, directory: Path | None, *, clearing_helps: bool) -> DemoError:
    """Why stores fail, as far as it can be seen from here."""
    if directory is None:
        return DemoError(f"{failed} stores failed", hint="see the engines' logs")
    try:
        disk = shutil.disk_usage(directory)
    except OSError as error:
        return DemoError(
            f"{failed} stores failed: {directory} cannot be used ({error.strerror})",
            hint="mount it again; storing goes on by itself",
        )
    if disk.free < disk.total * _LOW_SPACE:
        return DemoError(
            f"the directory is full: {failed} stores failed, and {disk.free >> 20} MiB are free "
            f"under {directory}. Answers are right all the same, only slower",
            hint="free some space"
            + (", or clear the cache" if clearing_helps else "")
            + "; storing goes on by itself",
        )
    return DemoError(f"{failed} stores failed", hint=f"`lmkv doctor {directory}` may know why")
