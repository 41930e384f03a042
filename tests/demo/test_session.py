"""The state behind the page, over engines that answer HTTP as vLLM does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

import fake_engine
from fake_engine import served

from lmkv.demo import backends, session
from lmkv.demo.backends import AttachedEngines
from lmkv.demo.counters import Activity, CounterLog
from lmkv.demo.document import Document
from lmkv.demo.metrics import EngineMetrics
from lmkv.demo.session import Session

TEXT = Document("text.md", "the lamp is lit at dusk")
Eventually = Callable[..., None]


@pytest.fixture(autouse=True)
def fresh_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_engine.Handler, "asked", 0)
    monkeypatch.setattr(fake_engine.Handler, "requests", [])
    monkeypatch.setattr(fake_engine.Handler, "lmkv", {})
    monkeypatch.setattr(fake_engine.Handler, "spans", [])
    monkeypatch.setattr(fake_engine.Handler, "limit", 1000)


@pytest.fixture
def two(eventually: Eventually) -> Iterator[Session]:
    """A session over a plain engine and one with lmkv, both ready."""
    with contextlib.ExitStack() as stack:
        addresses = [(stack.enter_context(served()), kind) for kind in ("plain", "lmkv")]
        here = stack.enter_context(Session(AttachedEngines(addresses)))
        eventually(lambda: [view.ready for view in here.engines()] == [True, True])
        yield here


def done(here: Session) -> bool:
    return not any(query.running for query in here.queries())


def test_engines_are_named_by_kind_and_asked_for_their_model(two: Session) -> None:
    plain, lmkv = two.engines()
    assert (plain.name, plain.title, plain.model) == ("plain-a", "plain vLLM A", "fake-model")
    assert (lmkv.name, lmkv.title) == ("lmkv-a", "vLLM w/ lmkv A")
    assert lmkv.base_url == f"http://127.0.0.1:{lmkv.port}"


def test_an_answer_comes_piece_by_piece_and_is_measured(
    two: Session, eventually: Eventually
) -> None:
    two.ask(["plain-a"], TEXT, "When?")
    texts = set()
    while not done(two):
        texts.add(two.queries()[0].answer.text)
        time.sleep(0.01)
    assert {"lmkv ", "lmkv keeps "} <= texts
    (query,) = two.queries()
    assert (query.state, query.ordinal, query.document) == ("done", 1, TEXT)
    assert query.answer.text == "lmkv keeps KV."
    assert query.answer.ttft_s >= fake_engine.FIRST_TOKEN_S


def test_two_engines_are_asked_at_once_and_one_engine_one_by_one(
    two: Session, eventually: Eventually
) -> None:
    two.ask(["plain-a"], TEXT, "When?")  # behind the warm-up
    eventually(lambda: done(two), 20)
    time.sleep(1)  # the other engine has been warmed up too
    fake_engine.Handler.spans.clear()
    two.ask(["plain-a", "lmkv-a"], TEXT, "When?")
    two.ask(["plain-a"], TEXT, "When?")
    eventually(lambda: done(two), 20)
    _, first, second, third = two.queries()
    assert first.group == second.group != third.group
    assert (first.ordinal, second.ordinal, third.ordinal) == (2, 1, 3)
    assert {query.state for query in (first, second, third)} == {"done"}
    plain = two.engines()[0].port
    (early, late) = sorted(span[1:] for span in fake_engine.Handler.spans if span[0] == plain)
    (other,) = (span[1:] for span in fake_engine.Handler.spans if span[0] != plain)
    assert early[1] <= late[0]
    assert max(early[0], other[0]) < min(early[1], other[1])


def test_a_question_that_is_too_long_fails_with_a_sentence(
    two: Session, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(fake_engine.Handler, "limit", 3)
    two.ask(["plain-a"], TEXT, "When?")
    eventually(lambda: done(two))
    (query,) = two.queries()
    assert query.state == "failed"
    assert query.error is not None
    assert query.error.message.startswith("plain vLLM A: the document is too long")
    assert "shorter document" in query.error.hint
    monkeypatch.setattr(fake_engine.Handler, "limit", 1000)
    two.ask(["plain-a"], TEXT, "When?")
    assert two.queries()[1].ordinal == 1  # nothing was computed for the first


def test_clearing_changes_the_salt_and_deletes_only_what_is_ours(
    tmp_path: Path, eventually: Eventually
) -> None:
    chunk = tmp_path / "v1" / "0011" / "r0" / "abc" / "abcdef.kv"
    for owns, left in ((False, True), (True, False)):
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(b"kv")
        with (
            served() as url,
            Session(
                AttachedEngines([(url, "lmkv")]), directory=tmp_path, owns_directory=owns
            ) as here,
        ):
            eventually(lambda here=here: [view.ready for view in here.engines()] == [True])
            here.ask(["lmkv-a"], TEXT, "When?")
            here.clear()
            here.ask(["lmkv-a"], TEXT, "When?")
            here.ask(["lmkv-a"], TEXT, "When?")
            eventually(lambda here=here: done(here), 20)
            salts = [r["cache_salt"] for r in fake_engine.Handler.requests if "cache_salt" in r]
            assert salts[-3] != salts[-2] == salts[-1]
            assert [(q.epoch, q.ordinal) for q in here.queries()] == [(0, 1), (1, 1), (1, 2)]
        assert chunk.exists() is left


def test_tokens_are_counted_by_an_engine(two: Session) -> None:
    assert two.count_tokens("one two three") == 3


def test_failing_stores_are_trouble_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Eventually
) -> None:
    monkeypatch.setattr(session, "_COUNT_EVERY_S", 0.1)
    monkeypatch.setattr(session, "_LOW_SPACE", 1.1)  # every disk is full then
    with (
        served() as url,
        Session(AttachedEngines([(url, "lmkv")]), directory=tmp_path) as here,
    ):
        eventually(lambda: [view.ready for view in here.engines()] == [True])
        time.sleep(1.5)  # an attached engine's past has been read, and is not ours
        assert here.trouble() == []
        monkeypatch.setitem(fake_engine.Handler.lmkv, "stores_failed", 4)
        eventually(lambda: bool(here.trouble()))
        assert here.trouble()[0].message.startswith("the directory is full: 4 stores failed")
        monkeypatch.setattr(session, "_LOW_SPACE", 0.0)
        assert "lmkv doctor" in here.trouble()[0].hint
        assert "clear the cache" not in here.trouble()[0].hint  # the directory is not ours
        here.directory = tmp_path / "gone"
        assert "cannot be used" in here.trouble()[0].message
        # It is told while it lasts, and not for ever.
        monkeypatch.setattr(here, "_failed_until", 0.0)
        assert here.trouble() == []


def readings(**values: float) -> EngineMetrics:
    return EngineMetrics("".join(f"vllm:lmkv_{k}_total {v}\n" for k, v in values.items()))


def test_counters_add_up_over_engines_and_over_their_restarts() -> None:
    log = CounterLog()
    assert log.add({}) == Activity()
    log.add({"a": readings(chunks_stored=3), "b": readings(chunks_stored=2)})
    assert log.activity.totals.chunks_stored == 5
    log.add({"a": readings(chunks_stored=4)})  # b did not answer
    log.add({"a": readings(chunks_stored=4), "b": readings(chunks_stored=1)})  # b is a new one
    assert log.activity.totals.chunks_stored == 7


def test_what_an_attached_engine_did_before_is_not_counted() -> None:
    log = CounterLog(from_zero=False)
    log.add({"a": readings(chunks_stored=30, stores_failed=12)})
    assert log.activity == Activity()
    log.add({"a": readings(chunks_stored=31, stores_failed=12)})
    log.add({"a": readings(chunks_stored=2)})  # a new one
    assert log.activity.totals.chunks_stored == 3
    assert log.activity.totals.stores_failed == 0


class ScriptedEngines:
    """A backend whose restarted engine is ready when the test says so."""

    can_restart = True

    def __init__(self) -> None:
        self.view = backends.EngineView("lmkv-b", "lmkv", "http://127.0.0.1:1", "ready")
        self.restarts: list[str] = []
        self.fault: Exception | None = None

    def look(self) -> list[backends.EngineView]:
        if self.fault is not None:
            raise self.fault
        return [self.view]

    def restart(self, name: str) -> None:
        self.restarts.append(name)
        self.view = replace(self.view, state="starting", stage=backends.STOPPING)


def test_an_engine_is_not_ready_while_it_is_restarted_and_a_second_click_is_one(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0.02)
    engines = ScriptedEngines()
    with Session(engines) as here:
        eventually(lambda: bool(here.engines()))
        here.restart("lmkv-b")
        here.restart("lmkv-b")
        eventually(lambda: bool(engines.restarts))
        time.sleep(0.1)
        here.restart("lmkv-b")
        assert here.engines()[0].state == "starting"
        engines.view = replace(engines.view, state="ready", stage="")
        eventually(lambda: here.engines()[0].ready)
        time.sleep(0.2)
        assert engines.restarts == ["lmkv-b"]


def test_a_fault_of_the_watching_is_shown_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0.02)
    engines = ScriptedEngines()
    engines.fault = OSError("no memory")
    with Session(engines) as here:
        eventually(lambda: bool(here.trouble()))
        assert "no memory" in here.trouble()[0].message
        engines.fault = None
        eventually(lambda: bool(here.engines()) and here.trouble() == [])


def test_a_question_that_fails_in_an_unknown_way_does_not_wait_for_ever(
    two: Session, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(session.Asker, "stream", broken)
    two.ask(["plain-a"], TEXT, "When?")
    eventually(lambda: done(two))
    (query,) = two.queries()
    assert query.error is not None
    assert "ZeroDivisionError" in query.error.message


def test_texts_of_one_name_are_told_apart(two: Session, eventually: Eventually) -> None:
    two.ask(["plain-a"], TEXT, "When?")
    two.ask(["plain-a"], Document("text.md", "another text"), "When?")
    assert [query.ordinal for query in two.queries()] == [1, 1]


def test_the_rate_of_the_disk_is_that_of_the_last_activity() -> None:
    log = CounterLog()
    log.add({"a": readings(bytes_loaded=4e9, reading_seconds=2.0)})
    assert log.activity.read_rate == 2e9
    log.add({"a": readings(bytes_loaded=4e9, reading_seconds=2.0)})
    assert log.activity.read_rate == 2e9
    log.add({"a": readings(bytes_loaded=5e9, reading_seconds=2.25)})
    assert log.activity.read_rate == 4e9
    assert log.activity.write_rate == 0.0
