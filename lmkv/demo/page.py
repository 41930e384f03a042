"""The page, a Streamlit script: it runs anew for every click, and what moves runs by itself.

It only shows the session and passes on what people do. Nothing here waits for an answer; only the
tokens of a new document are counted while somebody waits, for seconds at most.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Sequence

import streamlit as st

from lmkv.demo import chart, page_server
from lmkv.demo import document as documents
from lmkv.demo.backends import EngineView
from lmkv.demo.document import Document
from lmkv.demo.errors import DemoError
from lmkv.demo.session import Query

PASTE, UPLOAD = "paste a text", "upload a file"
_SHOWN_GROUPS, _KEPT_GROUPS = 2, 20
# Every run of a part takes from the cores that the engines may be using.
_ANSWERS_EVERY_S, _STATES_EVERY_S, _NUMBERS_EVERY_S = 0.25, 1.0, 2.0
_HEADINGS = re.compile(r"^#{1,4}(?= )", re.MULTILINE)
"""Headings that would outrank the page's own."""
_MARKS = {"starting": "◌", "ready": "●", "dead": "✕"}

_STYLE = """<style>
ul.lmkv-engines { list-style: none; margin: 0 !important; padding: 0 !important; }
ul.lmkv-engines li { margin: 0 0 0.3rem !important; padding: 0 !important; }
.lmkv-counters { border-collapse: collapse; width: 100%; }
.lmkv-counters th { text-align: left; font-weight: 400; }
.lmkv-counters td { font-variant-numeric: tabular-nums; font-weight: 600; text-align: right; }
.lmkv-counters td + td { font-weight: 400; text-align: left; padding-left: 1rem; }
.lmkv-figures { margin: 0; }
.lmkv-text { white-space: pre-wrap; overflow-wrap: anywhere; }
.st-key-document-text pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
.st-key-document-text pre * { white-space: pre-wrap !important; }
</style>"""

session = page_server.session()


def main() -> None:
    """The whole page."""
    st.set_page_config(page_title="lmkv demo", page_icon="⚡", layout="wide")
    st.html(_STYLE)
    st.title("vLLM with and without lmkv", anchor=False)
    st.markdown(
        "Ask an engine about a document. The first answer has to compute the whole document, on "
        "every plain engine again. An engine with lmkv loads what another one has computed."
    )
    # The document first: what it is decides about the question. It stands on the right.
    left, middle, right = st.columns([1, 2, 1.4], gap="large")
    with right:
        _document()
    with left:
        _controls()
    with middle:
        _ask_form()
        _transcript()
    st.divider()
    _numbers()


# -- left: engines --------------------------------------------------------------------------


def _controls() -> None:
    st.subheader("Engines", anchor=False)
    titles = {view.name: view.title for view in session.engines()}
    if not titles:  # for an instant after the start
        st.markdown("Looking for the engines ...")
        _states()
        return
    names = list(titles)
    st.radio(
        "Serving engine", names, format_func=titles.__getitem__, key="engine", horizontal=False
    )
    if len(names) > 1:
        st.toggle("Ask a second engine at once", key="compare")
        if st.session_state.compare:
            others = [name for name in names if name != st.session_state.engine]
            st.selectbox("Second engine", others, format_func=titles.__getitem__, key="second")
    _states()
    _buttons(titles)


@st.fragment(run_every=_STATES_EVERY_S)
def _states() -> None:
    states = [view.state for view in session.engines()]
    if st.session_state.setdefault("states", states) != states:
        st.session_state.states = states
        st.rerun()  # the whole page: buttons, and the count of the document's tokens
    lines = "".join(_state_line(view) for view in session.engines())
    st.html(f"<ul class='lmkv-engines' aria-label='State of the engines'>{lines}</ul>")
    for error in session.trouble():
        _show(error)


def _state_line(view: EngineView) -> str:
    words = {
        "starting": f"starting, {view.stage} ({view.elapsed_s:.0f} s)",
        "ready": "ready",
        "dead": view.stage or "dead",
    }[view.state]
    return (
        f"<li data-engine='{view.name}' data-state='{view.state}'>{_MARKS[view.state]} "
        f"<b>{view.title}</b>: {html.escape(words)}, port {view.port}</li>"
    )


def _buttons(titles: dict[str, str]) -> None:
    st.button("Clear the cache", on_click=_clear, width="stretch", help=_clear_help())
    if not session.can_restart:
        return
    for name, title in titles.items():
        if name.endswith("-b") or len(titles) == 1:
            st.button(
                f"Restart {title}",
                key=f"restart-{name}",
                on_click=session.restart,
                args=(name,),
                width="stretch",
                help="Its own prefix cache is lost; what lmkv has stored is not.",
            )
    dead = [view for view in session.engines() if view.state == "dead"]
    for view in dead:
        if not view.name.endswith("-b"):
            st.button(
                f"Restart {view.title}",
                key=f"restart-{view.name}",
                on_click=session.restart,
                args=(view.name,),
                width="stretch",
            )


def _clear() -> None:
    session.clear()
    st.toast("Cleared: the next question to any engine computes the document again.")


def _clear_help() -> str:
    if session.owns_directory:
        return "Deletes what lmkv has stored, and makes every engine forget the document."
    return (
        "The next questions use nothing that was computed before. What lmkv has stored stays on "
        "the disk: others may use that directory."
    )


# -- right: the document --------------------------------------------------------------------


def _document() -> None:
    st.subheader("Document", anchor=False)
    own = [session.document.name] if session.document is not None else []
    choice = st.selectbox(
        "Document",
        [*own, *documents.SHIPPED, PASTE, UPLOAD],
        key="document",
        on_change=_new_document,
    )
    if choice == PASTE:
        st.text_area("Text", key="pasted", height=300)
    elif choice == UPLOAD:
        st.file_uploader("Text file (UTF-8)", type=["txt", "md", "rst"], key="uploaded")
    document = _chosen()
    if document is None:
        st.info("Give a text; then ask about it.")
        return
    count = _count_tokens(document.text)
    st.markdown(
        f"**{count:,} tokens**" if count is not None else "Counted when an engine is ready."
    )
    if choice != PASTE:
        with st.container(height=420, key="document-text"):
            if choice in documents.SHIPPED and choice not in own:
                st.markdown(_HEADINGS.sub("#####", document.text))
            else:  # somebody's text is shown as what it is
                st.html(f"<div class='lmkv-text'>{html.escape(document.text)}</div>")


def _chosen() -> Document | None:
    """The document that is chosen now; None while there is none."""
    choice = st.session_state.document
    if session.document is not None and choice == session.document.name:
        return session.document
    if choice == PASTE:
        text = st.session_state.get("pasted", "")
        return Document("pasted text", text) if text.strip() else None
    if choice != UPLOAD:
        return documents.shipped(choice)
    file = st.session_state.get("uploaded")
    if file is None:
        return None
    try:
        text = file.getvalue().decode("utf-8")
    except UnicodeDecodeError:
        st.error(f"{file.name} is no text in UTF-8. Save it as plain text and upload it again.")
        return None
    return Document(file.name, text) if text.strip() else None


def _new_document() -> None:
    st.session_state.question = documents.SHIPPED.get(
        st.session_state.document, "What is this text about?"
    )


def _count_tokens(text: str) -> int | None:
    known: dict[str, int] = st.session_state.setdefault("token_counts", {})
    if text not in known and (count := session.count_tokens(text)) is not None:
        known[text] = count
    return known.get(text)


# -- middle: questions and answers ----------------------------------------------------------


def _ask_form() -> None:
    st.subheader("Ask", anchor=False)
    st.session_state.setdefault("question", session.question)
    with st.form("ask", border=False):
        st.text_input("Question", key="question")
        # A callback: it has run before any part of the page may ask for another run.
        st.form_submit_button("Ask", type="primary", on_click=_ask)
    if missing := st.session_state.pop("missing", None):
        st.warning(missing)


def _ask() -> None:
    document, question = _chosen(), st.session_state.question.strip()
    names = [st.session_state.engine] if "engine" in st.session_state else []
    if st.session_state.get("compare"):
        names.append(st.session_state.second)
    if not names:
        st.session_state.missing = "There is no engine to ask yet."
    elif document is None:
        st.session_state.missing = "Give a text first, on the right."
    elif not question:
        st.session_state.missing = "Write a question first."
    else:
        session.ask(names, document, question)


def _transcript() -> None:
    """What is being answered moves; all older answers below it are drawn once."""
    queries = session.queries()
    st.html(f"<span data-queries='{len(queries)}'></span>")
    if not queries:
        st.markdown("No question yet. Try a plain engine first, then the two with lmkv.")
    groups: defaultdict[int, list[Query]] = defaultdict(list)
    for query in queries:
        groups[query.group].append(query)
    newest = sorted(groups, reverse=True)[:_KEPT_GROUPS]
    running = [group for group in newest if any(query.running for query in groups[group])]
    st.fragment(_moving, run_every=_ANSWERS_EVERY_S if running else _STATES_EVERY_S)(
        running, len(queries)
    )
    standing = [group for group in newest if group not in running]
    for group in standing[:_SHOWN_GROUPS]:
        _show_group(groups[group])
    if earlier := standing[_SHOWN_GROUPS:]:
        with st.expander(f"Earlier answers ({len(earlier)})"):
            for group in earlier:
                _show_group(groups[group])


def _moving(groups: Sequence[int], known: int) -> None:
    """The answers of `groups`, while they come."""
    queries = session.queries()
    running = {query.group for query in queries if query.running}
    if running != set(groups) or len(queries) != known:  # or somebody asked in another window
        st.rerun()
    if not groups:
        st.empty()  # in the place of the last answer, which stands below already
        return
    with st.container():
        for group in groups:
            _show_group([query for query in queries if query.group == group])


def _show_group(queries: Sequence[Query]) -> None:
    with st.container(border=True, key=f"group-{queries[0].group}"):
        st.markdown(f"**{_plain(queries[0].question)}** ({_plain(queries[0].document.name)})")
        for column, query in zip(st.columns(len(queries)), queries, strict=True):
            with column, st.container(key=f"query-{query.number}"):
                _show_query(query)


def _show_query(query: Query) -> None:
    st.markdown(f"**{query.engine.title}**, {chart.ordinal(query.ordinal)} query")
    if query.error is not None:
        _show(query.error)
        return
    if query.answer.text:
        st.markdown(_plain(query.answer.text))
    else:
        st.markdown("*waiting for the first token ...*")
    st.html(_figures(query))


def _figures(query: Query) -> str:
    """What was measured of one answer, as HTML."""
    answer, parts = query.answer, []
    if answer.ttft_s:
        parts.append(f"response delay <b data-ttft='{answer.ttft_s:.4f}'>{answer.ttft_s:.2f} s</b>")
    if query.state == "done":
        parts.append(f"{answer.tokens_per_s:.0f} tokens/s")
        parts.append(
            f"<b data-loaded='{answer.tokens_loaded}' data-reading='{answer.reading_s:.3f}'>"
            f"{answer.tokens_loaded:,}</b> of "
            f"{answer.prompt_tokens:,} tokens loaded from lmkv"
        )
        if answer.tokens_kept:
            parts.append(f"{answer.tokens_kept:,} found in the engine's own prefix cache")
    return f"<p class='lmkv-figures' data-query-state='{query.state}'>{' · '.join(parts)}</p>"


# -- below: chart and counters --------------------------------------------------------------


@st.fragment(run_every=_NUMBERS_EVERY_S)
def _numbers() -> None:
    left, right = st.columns([2, 1], gap="large")
    with left:
        _chart()
    with right:
        _counters()


def _chart() -> None:
    st.subheader("Response delays", anchor=False)
    epoch = session.epoch
    asked = chart.rows(query for query in session.queries() if query.epoch == epoch)
    rows = chart.newest(asked)
    if not rows:
        st.markdown("Nothing was asked since the cache was cleared." if epoch else "Nothing yet.")
        return
    titles = [view.title for view in session.engines()]
    st.altair_chart(chart.delays(rows, titles), width="stretch")
    if words := chart.caption(len(asked) - len(rows)):
        st.markdown(words)


def _counters() -> None:
    st.subheader("lmkv so far", anchor=False)
    activity = session.activity()
    totals = activity.totals
    dropped, failed = int(totals.stores_dropped), int(totals.stores_failed)
    cells = [
        ("Chunks stored", f"{int(totals.chunks_stored):,}", _size(totals.bytes_stored)),
        ("Tokens hit", f"{int(totals.tokens_loaded):,}", f"{int(totals.chunks_loaded):,} chunks"),
        ("Disk, writing", _rate(activity.write_rate), "when last used"),
        ("Disk, reading", _rate(activity.read_rate), "when last used"),
        ("Stores dropped", f"{dropped:,}", "no host memory was free"),
        ("Stores failed", f"{failed:,}", f"{int(totals.loads_failed):,} loads failed"),
    ]
    lines = [
        f"<tr><th scope='row'>{name}</th><td data-counter='{name}'>{value}</td><td>{more}</td></tr>"
        for name, value, more in cells
    ]
    st.html(f"<table class='lmkv-counters'><tbody>{''.join(lines)}</tbody></table>")


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate else "0 GB/s"


# -- anywhere -------------------------------------------------------------------------------


def _show(error: DemoError) -> None:
    """One sentence, what to do, and the evidence."""
    hint = f" What to do: {error.hint}." if error.hint else ""
    st.error(_plain(f"{error.message.rstrip('.')}.{hint}"))
    if error.log:
        with st.expander("The engine's last words"):
            st.code(error.log, language=None)


def _plain(text: str) -> str:
    """Text as Markdown that shows just that."""
    return "".join(
        f"\\{character}" if character in "\\`*_{}[]()#+!|$<>~:" else character for character in text
    )


main()
