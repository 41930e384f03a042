"""What the page says in cases that real engines make rare: the script, without a browser."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the demo's dependencies are not installed")

import fake_engine
from fake_engine import served
from fake_process import fake_command, fake_spec
from streamlit.testing.v1 import AppTest

from lmkv.demo import chart, launch, page_server, session
from lmkv.demo.backends import AttachedEngines, OwnedEngines
from lmkv.demo.document import Document
from lmkv.demo.fleet import Fleet
from lmkv.demo.session import Session

Eventually = Callable[..., None]


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit takes `__main__`, which other tests' child processes would then run."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(fake_engine, "FIRST_TOKEN_S", 0.01)
    monkeypatch.setattr(fake_engine, "TOKEN_S", 0.0)


@contextlib.contextmanager
def page_over(here: Session) -> Iterator[AppTest]:
    """The page in the state in which a browser first sees it; running it again is a reload."""
    with here, page_server._as_the_session(here):
        yield AppTest.from_file(page_server._SCRIPT, default_timeout=60)


def sentences(page: AppTest) -> list[str]:
    """The errors that are shown, as they are read: without the marks that keep it plain text."""
    assert not page.exception
    return [error.value.replace("\\", "") for error in page.error]


def state_lines(page: AppTest) -> str:
    return next(part.proto.body for part in page.get("html") if "lmkv-engines'" in part.proto.body)


def test_an_attached_engine_that_never_answers_is_shown_as_not_answering(
    eventually: Eventually,
) -> None:
    engines = AttachedEngines([("http://127.0.0.1:1", "plain")], timeout_s=1.0)
    with page_over(Session(engines)) as page:
        eventually(lambda: [view.state for view in page_server.session().engines()] == ["dead"])
        page.run()
        (sentence,) = sentences(page)
        assert sentence == (
            "plain-a at http://127.0.0.1:1 has not answered for 1 s. What to do: start it, or "
            "give --attach the right address; the page notices an answer."
        )
        assert "not answering, port 1" in state_lines(page)


def test_an_engine_that_hung_is_restarted_by_the_button_that_the_sentence_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(launch, "command", fake_command)
    specs = [fake_spec("--silent", str(tmp_path / "was silent")), fake_spec(name="lmkv-a")]
    with (
        Fleet(specs, tmp_path) as fleet,
        page_over(Session(OwnedEngines(fleet, timeout_s=3.0))) as page,
    ):
        here = page_server.session()
        eventually(lambda: [view.state for view in here.engines()] == ["dead", "ready"], 30)
        (sentence,) = sentences(page.run())
        assert sentence.startswith("engine plain-a was not ready after 3 s")
        assert "What to do: restart it; if it only needs longer" in sentence
        page.button(key="restart-plain-a").click().run()
        assert "starting" in state_lines(page)
        eventually(lambda: all(view.ready for view in here.engines()), 30)
        assert sentences(page.run()) == []


def test_that_older_answers_are_left_out_of_the_chart_is_said_beside_it(
    eventually: Eventually,
) -> None:
    def notes(page: AppTest) -> list[str]:
        return [part.value for part in page.run().markdown if "left out" in part.value]

    text = Document("text.md", "the lamp is lit at dusk")
    with served() as url, page_over(Session(AttachedEngines([(url, "plain")]))) as page:
        here = page_server.session()
        eventually(lambda: [view.ready for view in here.engines()] == [True])
        for _ in range(chart.NEWEST):
            here.ask(["plain-a"], text, "When?")
        eventually(lambda: all(query.state == "done" for query in here.queries()), 30)
        assert notes(page) == []
        here.ask(["plain-a"], text, "When?")
        eventually(lambda: all(query.state == "done" for query in here.queries()), 30)
        assert notes(page) == [chart.caption(1)]
