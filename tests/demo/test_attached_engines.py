"""Engines that somebody else started: their addresses, and what is said of silent ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

from fake_engine import served

from lmkv.demo import backends, ports, session
from lmkv.demo.backends import AttachedEngines, parse_attach
from lmkv.demo.document import Document
from lmkv.demo.errors import DemoError
from lmkv.demo.session import Session

TEXT = Document("text.md", "the lamp is lit at dusk")
Eventually = Callable[..., None]


def test_an_engine_that_is_gone_is_dead_and_one_that_comes_back_is_ready(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0.05)
    with contextlib.ExitStack() as server:
        url = server.enter_context(served())
        with Session(AttachedEngines([(url, "plain")])) as here:
            eventually(lambda: [view.ready for view in here.engines()] == [True])
            server.close()
            eventually(lambda: here.engines()[0].state == "dead")
            (trouble,) = here.trouble()
            assert "does not answer any more" in trouble.message
            here.ask(["plain-a"], TEXT, "When?")
            eventually(lambda: here.queries()[0].state == "failed")
            with served(here.engines()[0].port or 0):
                eventually(lambda: here.engines()[0].ready)
                assert here.trouble() == []


def test_an_engine_that_never_answered_is_starting() -> None:
    engines = AttachedEngines([("http://127.0.0.1:1", "plain")])
    for _ in range(backends._FAILURES_OF_THE_DEAD + 1):
        (view,) = engines.look()
        assert (view.state, view.stage) == ("starting", "no answer yet")


def test_an_attached_engine_that_never_answers_is_said_so_and_recovers_by_itself(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0.05)
    (port,) = ports.choose(1)
    engines = AttachedEngines([(f"http://127.0.0.1:{port}", "plain")], timeout_s=2.0)
    with Session(engines) as here:
        eventually(lambda: [view.state for view in here.engines()] == ["starting"], 2)
        eventually(lambda: here.engines()[0].state == "dead")
        assert here.engines()[0].stage == "not answering"
        (trouble,) = here.trouble()
        assert trouble.message == f"plain-a at http://127.0.0.1:{port} has not answered for 2 s"
        assert trouble.hint.startswith("start it, or give --attach the right address")
        here.ask(["plain-a"], TEXT, "When?")
        eventually(lambda: here.queries()[0].state == "failed")
        assert here.queries()[0].error is not None
        assert here.queries()[0].error.hint == trouble.hint
        with served(port):
            eventually(lambda: here.engines()[0].ready)
            assert here.trouble() == []
            here.ask(["plain-a"], TEXT, "When?")
            eventually(lambda: here.queries()[1].state == "done")


def test_attach_takes_addresses_with_their_kind() -> None:
    assert parse_attach("http://a:8000=plain, http://b:8002/v1=lmkv") == [
        ("http://a:8000", "plain"),
        ("http://b:8002", "lmkv"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a:8000",
        "http://a:8x=plain",
        "http://a:99999=plain",
        "http://a:8000=fast",
        "a:8000=plain",
        "http://=plain",
    ],
)
def test_attach_refuses_what_is_no_address_and_kind(text: str) -> None:
    with pytest.raises(DemoError) as refused:
        parse_attach(text)
    assert "--attach http://" in refused.value.hint
