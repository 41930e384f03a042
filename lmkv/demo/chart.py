"""The bar chart of response delays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair

    from lmkv.demo.session import Query

PLAIN, LMKV = "#8a8f98", "#0f9d76"
"""Colours of the two kinds, told apart on light and dark ground."""

_BAR = 26
NEWEST = 12
"""How many answers of an engine are drawn: more do not fit on a screen."""


def delays(
    rows: Sequence[dict[str, Any]], engines: Sequence[str]
) -> altair.LayerChart | altair.FacetChart:
    """One bar for every one of the `rows`, by engine, in the order of `engines`."""
    import altair

    base = altair.Chart(altair.InlineData(values=list(rows))).encode(
        y=altair.Y("engine:N", sort=list(engines), title=None, scale={"domain": list(engines)}),
        yOffset=altair.YOffset("query:N"),
        x=altair.X("seconds:Q", stack=None, title="response delay (TTFT) in seconds"),
        tooltip=["engine:N", "what:N", altair.Tooltip("seconds:Q", format=".2f")],
    )
    colour = altair.Color(
        "kind:N", scale={"domain": ["plain", "lmkv"], "range": [PLAIN, LMKV]}, legend=None
    )
    label = altair.Text("label:N")
    bars = base.mark_bar(cornerRadiusEnd=3).encode(color=colour)
    labels = base.mark_text(align="left", dx=4, color="#7a7f88").encode(text=label)
    most = max((sum(row["engine"] == name for row in rows) for name in engines), default=1)
    height = max(120, len(engines) * (max(most, 1) * _BAR + 12))
    return altair.layer(bars, labels).properties(height=height)


def rows(queries: Iterable[Query]) -> list[dict[str, Any]]:
    """A row for every answer, numbered by engine: two answers never share a bar."""
    found: list[dict[str, Any]] = []
    numbers: Counter[str] = Counter()
    for query in queries:
        if query.state != "done":
            continue
        engine, seconds = query.engine.title, query.answer.ttft_s
        numbers[engine] += 1
        words = f"{query.document.name}, {ordinal(query.ordinal)} query"
        found.append(
            {
                "engine": engine,
                "kind": query.engine.kind,
                "query": f"{numbers[engine]:04}",
                "what": words,
                "seconds": round(seconds, 3),
                "label": f"{seconds:.2f} s ({words})",
            }
        )
    return found


def newest(rows: Sequence[dict[str, Any]], count: int = NEWEST) -> list[dict[str, Any]]:
    """The last `count` rows of each engine, in the order of `rows`."""
    left = Counter(row["engine"] for row in rows)
    kept = []
    for row in rows:
        if left[row["engine"]] <= count:
            kept.append(row)
        left[row["engine"]] -= 1
    return kept


def caption(left_out: int, count: int = NEWEST) -> str:
    """What is to be said beside a chart that leaves out so many older rows; empty for none."""
    if not left_out:
        return ""
    older = "1 older answer is" if left_out == 1 else f"{left_out:,} older answers are"
    return f"The newest {count} answers of each engine; {older} left out."


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    teens = 10 < number % 100 < 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
