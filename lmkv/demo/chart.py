"""The bar chart of response delays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair

PLAIN, LMKV = "#8a8f98", "#0f9d76"
"""Colours of the two kinds, told apart on light and dark ground."""

_BAR = 26


def delays(
    rows: Sequence[dict[str, Any]], engines: Sequence[str]
) -> altair.LayerChart | altair.FacetChart:
    """One bar a row: `engine` (one of `engines`), `kind`, `query` ("1st", ...), `seconds`."""
    import altair

    base = altair.Chart(altair.InlineData(values=list(rows))).encode(
        y=altair.Y("engine:N", sort=list(engines), title=None, scale={"domain": list(engines)}),
        yOffset=altair.YOffset("query:N", sort=None),
        x=altair.X("seconds:Q", title="response delay (TTFT) in seconds"),
        tooltip=["engine:N", "query:N", altair.Tooltip("seconds:Q", format=".2f")],
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


def row(engine: str, kind: str, query: int, seconds: float) -> dict[str, Any]:
    """The row of one answer: the `query`-th question to that engine."""
    name = ordinal(query)
    return {
        "engine": engine,
        "kind": kind,
        "query": f"{name} query",
        "seconds": round(seconds, 3),
        "label": f"{seconds:.2f} s ({name} query)",
    }


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    teens = 10 < number % 100 < 20
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
