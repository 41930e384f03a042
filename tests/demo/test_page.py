"""The page of `lmkv demo` in a real browser, over real engines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("streamlit", reason="the demo's dependencies are not installed")
pytest.importorskip("playwright", reason="Playwright is not installed")

from axe_playwright_python.sync_playwright import Axe
from page_driver import (
    CHUNK_TOKENS,
    TITLES,
    Demo,
    address,
    answered,
    ask,
    ask_both,
    asked,
    assert_side_by_side,
    choose_document,
    counter,
    delay,
    expect_tokens,
    loaded,
    loaded_all,
    model_of,
    open_page,
    prompt,
    shot,
    start,
    wait_for_state,
)
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lmkv.demo.document import SHIPPED, shipped

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
QUIET = (
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)
COLUMNS = ("Engines", "Ask", "Document")
NOTE = "The meeting is on Friday at nine. " * 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = next((path for path in CHROMIUM if Path(path).exists()), None)
    if chromium is None:
        pytest.fail("no Chromium: install the package chromium (scripts/setup.sh does as root)")
    with sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=chromium, args=[f"--{word}" for word in QUIET]
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Four engines, as they start."""
    os.sync()
    running = start()
    try:
        yield running
        running.end()
    finally:
        running.process.kill()


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 1380})
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    open_page(tab, demo.url)
    yield tab
    context.close()


def test_the_page_opens_at_once_and_shows_the_engines_start(page: Page, demo: Demo) -> None:
    assert demo.seconds_to_page < 30
    for name in TITLES:
        expect(page.locator(f"[data-engine='{name}']")).to_be_visible()
    expect(page.get_by_text("No question yet")).to_be_visible()
    shot(page, "starting")
    for name in TITLES:
        wait_for_state(page, name, "ready", 400)
    expect_tokens(page, shipped().text)


def test_a_second_engine_is_fast_only_with_lmkv(
    page: Page, eventually: Callable[..., None]
) -> None:
    first = {name: delay(ask(page, name)) for name in ("plain-a", "lmkv-a")}
    plain = ask(page, "plain-b")
    lmkv = ask(page, "lmkv-b")
    assert loaded(plain) == 0
    assert loaded_all(lmkv)
    assert prompt(lmkv) > 4 * CHUNK_TOKENS  # or the delays would say little
    hit, chunks = loaded(lmkv), prompt(lmkv) // CHUNK_TOKENS
    assert delay(plain) > 0.5 * first["plain-a"]  # it had to compute it all, as the first did
    reading = lmkv.locator("[data-reading]").get_attribute("data-reading")
    if delay(lmkv) * 5 > delay(plain) and float(reading or 0) > 0.5:
        # A disk that somebody else keeps busy; once more.
        os.sync()
        page.get_by_role("button", name="Clear the cache").click()
        ask(page, "lmkv-a")
        plain, lmkv = ask(page, "plain-b"), ask(page, "lmkv-b")
    assert delay(lmkv) * 5 <= delay(plain)
    text = lmkv.inner_text()
    assert "tokens/s" in text
    assert "tokens loaded from lmkv" in text
    # Asked again, each is fast by itself.
    assert delay(ask(page, "plain-b")) * 5 <= delay(plain)
    chart = page.get_by_test_id("stVegaLiteChart")
    expect(chart).to_be_visible()
    # The counters come a few seconds later.
    eventually(lambda: counter(page, "Tokens hit") >= hit, 20)
    eventually(lambda: counter(page, "Chunks stored") >= chunks, 20)
    shot(page, "answers")


def test_two_engines_answer_the_same_question_side_by_side(page: Page) -> None:
    assert_side_by_side(*ask_both(page, "plain-b", "lmkv-b"))
    shot(page, "side-by-side")


def test_two_attached_engines_answer_side_by_side_and_outlive_the_page(
    browser: Browser, page: Page, tmp_path: Path
) -> None:
    note = tmp_path / "note.txt"
    note.write_text(NOTE)
    names = {
        "plain-a": "plain-b",
        "lmkv-a": "lmkv-b",
    }  # as the second page calls those of the first
    for name in names.values():
        wait_for_state(page, name, "ready", 400)
    addresses = {name: address(page, theirs) for name, theirs in names.items()}
    listed = ",".join(f"{url}={name.partition('-')[0]}" for name, url in addresses.items())
    attached = start("--attach", listed, "--document", str(note), "--question", "When do we meet?")
    context = browser.new_context(viewport={"width": 1440, "height": 1380})
    try:
        tab = context.new_page()
        tab.set_default_timeout(30_000)
        open_page(tab, attached.url)
        for name, url in addresses.items():
            wait_for_state(tab, name, "ready", 60)
            assert address(tab, name) == url
        expect_tokens(tab, NOTE)
        left, right = ask_both(tab, "plain-a", "lmkv-a")
        for box, name in ((left, "plain-a"), (right, "lmkv-a")):
            text = box.inner_text()
            assert TITLES[name] in text
            assert "response delay" in text
            assert "friday" in text.lower()
            assert delay(box) > 0
        assert_side_by_side(left, right)
        # They are not this page's to restart.
        expect(tab.get_by_role("button", name=re.compile("Restart"))).to_have_count(0)
        shot(tab, "attached")
        attached.end()
        for url in addresses.values():
            assert model_of(url)["id"]
    finally:
        context.close()
        attached.process.kill()


def test_after_clearing_the_cache_all_is_computed_again(page: Page) -> None:
    page.get_by_role("button", name="Clear the cache").click()
    expect(page.get_by_text("Nothing was asked since the cache was cleared")).to_be_visible()
    for name in ("lmkv-b", "plain-b"):
        box = ask(page, name)
        assert loaded(box) == 0
        assert delay(ask(page, name)) * 5 <= delay(box)  # which was not what the engine had kept
    # And stored again: the other one loads it.
    assert loaded_all(ask(page, "lmkv-a"))


def test_a_killed_engine_is_said_to_be_dead_and_recovers_after_a_restart(
    page: Page, demo: Demo
) -> None:
    ask(page, "lmkv-a")  # has its KV in the directory
    demo.engine(page, "lmkv-b").kill()
    wait_for_state(page, "lmkv-b", "dead", 30)
    expect(page.get_by_text("engine lmkv-b died")).to_be_visible()
    shot(page, "dead")
    page.get_by_role("button", name="Restart vLLM w/ lmkv B").click()
    wait_for_state(page, "lmkv-b", "starting", 10)
    wait_for_state(page, "lmkv-b", "ready", 300)
    # A new process with an empty prefix cache: what it knows, it loaded.
    assert loaded_all(ask(page, "lmkv-b"))
    expect(page.get_by_text("engine lmkv-b died")).not_to_be_visible()


@pytest.mark.parametrize(("document", "word"), [("lighthouse.md", "1829"), ("handbook.md", "27")])
def test_a_shipped_document_brings_a_question_that_the_model_can_answer(
    page: Page, document: str, word: str
) -> None:
    choose_document(page, document)
    expect(page.get_by_role("textbox", name="Question")).not_to_have_value(
        "Does lmkv change the answers?"
    )
    expect_tokens(page, shipped(document).text)
    assert word in ask(page, "lmkv-a").inner_text()


def test_a_text_that_is_too_long_is_refused_with_a_sentence(page: Page) -> None:
    choose_document(page, "paste a text")
    wait_for_state(page, "plain-a", "ready", 400)
    longest = int(model_of(address(page, "plain-a"))["max_model_len"])
    text = "The quick brown fox. " * (longest // 3)  # of four tokens at least
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    expect_tokens(page, text)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("the document is too long for the model").first).to_be_visible()
    expect(page.get_by_text("give a shorter document").first).to_be_visible()


def test_the_chart_keeps_documents_apart(page: Page) -> None:
    for document in ("lighthouse.md", "handbook.md"):
        choose_document(page, document)
        expect(page.get_by_role("textbox", name="Question")).to_have_value(SHIPPED[document])
        ask(page, "lmkv-a")
    # A picture to the test: what it is drawn from is tested in test_session.py.
    expect(page.get_by_test_id("stVegaLiteChart")).to_be_visible()
    shot(page, "chart")


def test_an_uploaded_file_is_asked_about(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text(NOTE)
    choose_document(page, "upload a file")
    page.locator("input[type=file]").set_input_files(file)
    expect_tokens(page, NOTE)
    before = asked(page)
    page.get_by_role("textbox", name="Question").fill("On which day is the meeting?")
    page.get_by_role("textbox", name="Question").press("Enter")  # the keyboard is enough
    box = answered(page, before)
    assert "friday" in box.inner_text().lower()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(browser: Browser, demo: Demo, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    open_page(page, demo.url)
    if not asked(page):
        ask(page, "lmkv-a")
    expect(page.locator("[data-query-state='done']").first).to_be_visible()
    ground = page.locator(".stApp").evaluate("app => getComputedStyle(app).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3])
    assert (brightness < 200) == (scheme == "dark")
    results = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
    shot(page, scheme)
    ours = [v for v in results.response["violations"] if v["impact"] in ("serious", "critical")]
    assert ours == [], results.generate_report()
    context.close()


def test_a_narrow_window_shows_everything_in_one_column(browser: Browser, demo: Demo) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    open_page(page, demo.url)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    shot(page, "narrow")
    main = page.get_by_test_id("stMain")  # this is what scrolls
    assert main.evaluate("main => main.scrollWidth") <= 390
    boxes = [page.get_by_role("heading", name=n, exact=True).bounding_box() for n in COLUMNS]
    tops = [box["y"] for box in boxes if box is not None]
    assert len(tops) == 3
    assert tops == sorted(tops)
    assert tops[1] - tops[0] > 200
    assert len({round(box["x"]) for box in boxes if box is not None}) == 1
    context.close()
