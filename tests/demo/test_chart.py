"""What the bar chart of response delays is drawn from."""

from __future__ import annotations

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

from lmkv.demo import chart
from lmkv.demo.ask import Answer
from lmkv.demo.backends import EngineView
from lmkv.demo.document import Document
from lmkv.demo.session import Query

PLAIN = EngineView("plain-a", "plain", "http://127.0.0.1:1", "ready")
LMKV = EngineView("lmkv-a", "lmkv", "http://127.0.0.1:2", "ready")
TEXT = Document("text.md", "the lamp is lit at dusk")


def query(engine: EngineView, ordinal: int = 1, document: Document = TEXT, **more: str) -> Query:
    """A whole answer whose delay is `ordinal` seconds."""
    answer = Answer(text="At dusk.", ttft_s=float(ordinal))
    return Query(
        0, 0, 0, ordinal, engine, document, "When?", **{"state": "done"} | more, answer=answer
    )


def test_every_answer_has_a_bar_of_its_own() -> None:
    other = Document("other.md", "another text")
    rows = chart.rows([query(PLAIN), query(PLAIN, document=other), query(LMKV)])
    assert len({(row["engine"], row["query"]) for row in rows}) == 3
    assert [row["what"] for row in rows] == [
        "text.md, 1st query",
        "other.md, 1st query",
        "text.md, 1st query",
    ]
    drawn = chart.delays(rows, [PLAIN.title, LMKV.title]).to_dict()
    assert [layer["encoding"]["x"]["stack"] for layer in drawn["layer"]] == [None, None]


def test_only_whole_answers_are_drawn() -> None:
    states = ("waiting", "answering", "failed", "done")
    assert len(chart.rows(query(PLAIN, state=state) for state in states)) == 1


def test_the_newest_answers_of_each_engine_are_kept_in_their_order() -> None:
    busy = [query(PLAIN, number) for number in range(1, 16)]
    rows = chart.rows([query(LMKV, 1), *busy, query(LMKV, 2)])
    kept = chart.newest(rows)
    assert len(rows) == 17
    assert [row["seconds"] for row in kept if row["engine"] == PLAIN.title] == list(range(4, 16))
    # The other engine's, older than all that were left out, stays.
    assert [row["seconds"] for row in kept if row["engine"] == LMKV.title] == [1, 2]
    assert kept == [row for row in rows if row in kept]


def test_the_chart_stops_growing() -> None:
    def height(answers: int) -> int:
        rows = chart.newest(chart.rows(query(PLAIN, number + 1) for number in range(answers)))
        drawn: int = chart.delays(rows, [PLAIN.title, LMKV.title]).to_dict()["height"]
        return drawn

    assert height(3) < height(chart.NEWEST) == height(chart.NEWEST + 1) == height(100)


def test_as_many_as_are_kept_are_all_kept() -> None:
    rows = chart.rows(query(PLAIN, number + 1) for number in range(chart.NEWEST))
    assert chart.newest(rows) == rows


def test_what_is_left_out_is_said() -> None:
    assert chart.caption(0) == ""
    assert chart.caption(1) == "The newest 12 answers of each engine; 1 older answer is left out."
    assert chart.caption(1234).endswith(
        "12 answers of each engine; 1,234 older answers are left out."
    )
