"""What the tests of the page do with it: starts it, clicks, and reads what it shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import Locator, Page, expect

from lmkv.config import Config

SHOTS = Path(__file__).parents[2] / "build" / "page"
TITLES = {
    "plain-a": "plain vLLM A",
    "plain-b": "plain vLLM B",
    "lmkv-a": "vLLM w/ lmkv A",
    "lmkv-b": "vLLM w/ lmkv B",
}
ANSWER_MS = 120_000
# A run of the page asks engines how many tokens a text has, and a busy one takes its two seconds.
expect.set_options(timeout=30_000)
CHUNK_TOKENS = Config(path=("/unused",)).chunk_tokens


@dataclass
class Demo:
    """A running `lmkv demo`."""

    process: subprocess.Popen[str]
    url: str
    seconds_to_page: float
    said: list[str]

    def engine(self, page: Page, name: str) -> psutil.Process:
        """The first process of an engine, found by the port that the page shows."""
        port = address(page, name).rpartition(":")[2]
        for child in psutil.Process(self.process.pid).children(recursive=True):
            words = child.cmdline()
            if (
                "api_server" in " ".join(words)
                and port in words
                and "lmkv.demo.keeper" not in words
            ):
                return child
        raise AssertionError(f"no process serves {name} on port {port}")

    def end(self) -> None:
        """The user's Ctrl-C; checks that it ends in order, and that all that it started is gone."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(90) == 0, "".join(self.said)
        assert [child for child in children if child.is_running()] == []


def address(page: Page, name: str) -> str:
    """Where an engine answers, by the port that the page shows."""
    line = page.locator(f"[data-engine='{name}']").inner_text()
    port = re.search(r"port (\d+)", line)
    assert port is not None
    return f"http://127.0.0.1:{port[1]}"


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


def choose_document(tab: Page, name: str) -> None:
    tab.get_by_role("combobox", name=re.compile("Document")).click()
    tab.get_by_role("option", name=name).click()


def ask(tab: Page, name: str) -> Locator:
    """Chooses the engine and asks, when it is ready; the box of the answer, complete."""
    wait_for_state(tab, name, "ready", 400)
    before = asked(tab)
    tab.get_by_role("radiogroup").get_by_text(TITLES[name], exact=True).click()
    tab.get_by_role("button", name="Ask", exact=True).click()
    return answered(tab, before)


def ask_both(tab: Page, first: str, second: str) -> tuple[Locator, Locator]:
    """Chooses two engines and asks them at once; the boxes of the answers, complete."""
    for name in (first, second):
        wait_for_state(tab, name, "ready", 400)
    before = asked(tab)
    tab.get_by_role("radiogroup").get_by_text(TITLES[first], exact=True).click()
    tab.get_by_text("Ask a second engine at once").click()
    tab.get_by_role("combobox", name=re.compile("Second engine")).click()
    tab.get_by_role("option", name=TITLES[second]).click()
    tab.get_by_role("button", name="Ask", exact=True).click()
    return answered(tab, before), answered(tab, before + 1)


def assert_side_by_side(left: Locator, right: Locator) -> None:
    a, b = left.bounding_box(), right.bounding_box()
    assert a is not None
    assert b is not None
    assert abs(a["y"] - b["y"]) < 5
    assert a["x"] + a["width"] <= b["x"] + 1


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


def prompt(box: Locator) -> int:
    """How many tokens the whole prompt had, as the answer says."""
    found = re.search(r"of ([\d,]+) tokens loaded", box.inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def loaded_all(box: Locator) -> bool:
    """Whether the prompt came from lmkv, but for a last chunk that may not be whole."""
    return loaded(box) >= prompt(box) - CHUNK_TOKENS


def counter(tab: Page, name: str) -> int:
    return int(tab.locator(f"[data-counter='{name}']").inner_text().replace(",", ""))


def model_of(url: str) -> dict[str, Any]:
    """What the engine says of the model that it serves."""
    models = httpx.get(f"{url}/v1/models", timeout=10, trust_env=False).raise_for_status().json()
    served: dict[str, Any] = models["data"][0]
    return served


def expect_tokens(tab: Page, text: str) -> None:
    """The page shows as many tokens as an engine counts in `text`."""
    wait_for_state(tab, "plain-a", "ready", 400)
    url = address(tab, "plain-a")
    request = {"model": model_of(url)["id"], "prompt": text}
    answer = httpx.post(f"{url}/tokenize", json=request, timeout=30, trust_env=False)
    count = answer.raise_for_status().json()["count"]
    assert count > 0
    shown = tab.get_by_text(f"{count:,} tokens", exact=True)
    expect(shown).to_be_visible(timeout=20_000)
