"""The page of `lmkv demo` in a real browser, over real engines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("streamlit", reason="the demo's dependencies are not installed")
pytest.importorskip("playwright", reason="Playwright is not installed")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from lmkv.demo.document import SHIPPED

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
SHOTS = Path(__file__).parents[2] / "build" / "page"
TITLES = {
    "plain-a": "plain vLLM A",
    "plain-b": "plain vLLM B",
    "lmkv-a": "vLLM w/ lmkv A",
    "lmkv-b": "vLLM w/ lmkv B",
}
COLUMNS = ("Engines", "Ask", "Document")
ANSWER_MS = 120_000


@dataclass
class Demo:
    """A running `lmkv demo`."""

    process: subprocess.Popen[str]
    url: str
    seconds_to_page: float
    said: list[str]

    def engine(self, page: Page, name: str) -> psutil.Process:
        """The keeper of an engine, found by the port that the page shows."""
        line = page.locator(f"[data-engine='{name}']").inner_text()
        port = re.search(r"port (\d+)", line)
        assert port is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            words = child.cmdline()
            if (
                "api_server" in " ".join(words)
                and port[1] in words
                and "lmkv.demo.keeper" not in words
            ):
                return child
        raise AssertionError(f"no process serves {line}")


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


def start(*arguments: str) -> Demo:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {"NO_COLOR": "1", "COLUMNS": "120"}
    command = [sys.executable, "-u", "-c", "from lmkv.cli import app; app()", "demo", *arguments]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"Open (http://\S+)", line):
            seconds = time.monotonic() - began
            # Read on, or a talkative demo would wait for a reader.
            threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True).start()
            return Demo(process, found[1], seconds, said)
    raise AssertionError(f"no page; exit status {process.wait()}: {''.join(said)}")


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Four engines, as they start."""
    os.sync()
    running = start()
    family = psutil.Process(running.process.pid)
    try:
        yield running
        # The user's Ctrl-C; the engines go with it.
        children = family.children(recursive=True)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(90) == 0, "".join(running.said)
        assert [child for child in children if child.is_running()] == []
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


def open_page(tab: Page, url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    tab.goto(url)
    expect(tab.get_by_role("heading", name="Engines")).to_be_visible()


def shot(tab: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def wait_for_state(tab: Page, name: str, state: str, within_s: float) -> None:
    line = tab.locator(f"[data-engine='{name}']")
    expect(line).to_have_attribute("data-state", state, timeout=within_s * 1000)


def ask(tab: Page, name: str) -> Locator:
    """Chooses the engine and asks, when it is ready; the box of the answer, complete."""
    wait_for_state(tab, name, "ready", 400)
    before = asked(tab)
    tab.get_by_role("radiogroup").get_by_text(TITLES[name], exact=True).click()
    tab.get_by_role("button", name="Ask", exact=True).click()
    return answered(tab, before)


def asked(tab: Page) -> int:
    """How many questions there were."""
    return int(tab.locator("[data-queries]").get_attribute("data-queries") or "-1")


def answered(tab: Page, number: int) -> Locator:
    box = tab.locator(f".st-key-query-{number}")
    expect(box.locator("[data-query-state='done']")).to_be_visible(timeout=ANSWER_MS)
    return box


def delay(box: Locator) -> float:
    return float(box.locator("[data-ttft]").get_attribute("data-ttft") or "nan")


def loaded(box: Locator) -> int:
    return int(box.locator("[data-loaded]").get_attribute("data-loaded") or "-1")


def test_the_page_opens_at_once_and_shows_the_engines_start(page: Page, demo: Demo) -> None:
    assert demo.seconds_to_page < 30
    for name in TITLES:
        expect(page.locator(f"[data-engine='{name}']")).to_be_visible()
    expect(page.get_by_text("No question yet")).to_be_visible()
    shot(page, "starting")
    for name in TITLES:
        wait_for_state(page, name, "ready", 400)
    expect(page.get_by_text(re.compile(r"2,5\d\d tokens"))).to_be_visible()


def test_a_second_engine_is_fast_only_with_lmkv(page: Page) -> None:
    first = {name: delay(ask(page, name)) for name in ("plain-a", "lmkv-a")}
    plain = ask(page, "plain-b")
    lmkv = ask(page, "lmkv-b")
    assert loaded(plain) == 0
    assert loaded(lmkv) > 2000
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
    for name, value in (("Tokens hit", r"\d,\d\d\d"), ("Chunks stored", r"[1-9]\d")):
        counter = page.locator(f"[data-counter='{name}']")
        expect(counter).to_have_text(re.compile(value), timeout=20_000)
    shot(page, "answers")


def test_two_engines_answer_the_same_question_side_by_side(page: Page) -> None:
    before = asked(page)
    page.get_by_role("radiogroup").get_by_text(TITLES["plain-b"], exact=True).click()
    page.get_by_text("Ask a second engine at once").click()
    page.get_by_role("combobox", name=re.compile("Second engine")).click()
    page.get_by_role("option", name=TITLES["lmkv-b"]).click()
    page.get_by_role("button", name="Ask", exact=True).click()
    left, right = answered(page, before), answered(page, before + 1)
    a, b = left.bounding_box(), right.bounding_box()
    assert a is not None
    assert b is not None
    assert abs(a["y"] - b["y"]) < 5
    assert a["x"] + a["width"] <= b["x"] + 1
    shot(page, "side-by-side")


def test_after_clearing_the_cache_all_is_computed_again(page: Page) -> None:
    page.get_by_role("button", name="Clear the cache").click()
    expect(page.get_by_text("Nothing was asked since the cache was cleared")).to_be_visible()
    for name in ("lmkv-b", "plain-b"):
        box = ask(page, name)
        assert loaded(box) == 0
        assert delay(ask(page, name)) * 5 <= delay(box)  # which was not what the engine had kept
    # And stored again: the other one loads it.
    assert loaded(ask(page, "lmkv-a")) > 2000


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
    box = ask(page, "lmkv-b")
    assert loaded(box) > 2000
    expect(page.get_by_text("engine lmkv-b died")).not_to_be_visible()


@pytest.mark.parametrize(("document", "word"), [("lighthouse.md", "1829"), ("handbook.md", "27")])
def test_a_shipped_document_brings_a_question_that_the_model_can_answer(
    page: Page, document: str, word: str
) -> None:
    page.get_by_role("combobox", name=re.compile("Document")).click()
    page.get_by_role("option", name=document).click()
    expect(page.get_by_role("textbox", name="Question")).not_to_have_value(
        "Does lmkv change the answers?"
    )
    expect(page.get_by_text(re.compile(r"^2,2\d\d tokens$"))).to_be_visible()
    assert word in ask(page, "lmkv-a").inner_text()


def test_a_text_that_is_too_long_is_refused_with_a_sentence(page: Page) -> None:
    page.get_by_role("combobox", name=re.compile("Document")).click()
    page.get_by_role("option", name="paste a text").click()
    page.get_by_label("Text", exact=True).fill("The quick brown fox. " * 3000)
    page.get_by_label("Text", exact=True).press("Control+Enter")
    expect(page.get_by_text(re.compile(r"1\d,\d\d\d tokens"))).to_be_visible()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("the document is too long for the model").first).to_be_visible()
    expect(page.get_by_text("give a shorter document").first).to_be_visible()


def test_the_chart_keeps_documents_apart(page: Page) -> None:
    for document in ("lighthouse.md", "handbook.md"):
        page.get_by_role("combobox", name=re.compile("Document")).click()
        page.get_by_role("option", name=document).click()
        expect(page.get_by_role("textbox", name="Question")).to_have_value(SHIPPED[document])
        ask(page, "lmkv-a")
    # A picture to the test: what it is drawn from is tested in test_session.py.
    expect(page.get_by_test_id("stVegaLiteChart")).to_be_visible()
    shot(page, "chart")


def test_an_uploaded_file_is_asked_about(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("The meeting is on Friday at nine. " * 20)
    page.get_by_role("combobox", name=re.compile("Document")).click()
    page.get_by_role("option", name="upload a file").click()
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_text(re.compile(r"^1\d\d tokens$"))).to_be_visible()
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
