"""Asking and measuring, against a server whose delays are known."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the demo's dependencies are not installed")

import fake_engine

from lmkv.demo import ask, measure
from lmkv.demo.ask import Answer
from lmkv.demo.errors import DemoError
from lmkv.demo.measure import Measured, Results

QUESTION = [{"role": "user", "content": "what is this about"}]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(fake_engine.Handler, "asked", 0)
    with fake_engine.served() as base_url:
        yield base_url


def test_the_first_token_is_timed_and_the_empty_role_message_is_not(engine: str) -> None:
    answer = ask.Asker(engine).ask(QUESTION, 8)
    assert answer.text == "lmkv keeps KV."
    # Loose upwards: a busy machine is late, but never early.
    assert fake_engine.FIRST_TOKEN_S <= answer.ttft_s < fake_engine.FIRST_TOKEN_S + 5
    assert answer.total_s > answer.ttft_s
    assert answer.prompt_tokens == 4
    assert answer.answer_tokens == 3
    assert answer.tokens_per_s > 0


def test_an_answer_grows_while_it_is_streamed(engine: str) -> None:
    texts = [answer.text for answer in ask.Asker(engine).stream(QUESTION, 8)]
    assert texts == ["lmkv ", "lmkv keeps ", "lmkv keeps KV.", "lmkv keeps KV."]


def test_tokens_loaded_and_kept_are_those_of_this_request(engine: str) -> None:
    asker = ask.Asker(engine)
    first, second, third = (asker.ask(QUESTION, 8) for _ in range(3))
    assert [first.tokens_loaded, second.tokens_loaded, third.tokens_loaded] == [96, 0, 0]
    assert [first.tokens_kept, second.tokens_kept, third.tokens_kept] == [0, 64, 64]


def test_a_proxy_of_the_environment_is_not_asked(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask.Asker(engine).ask(QUESTION, 8).text


def test_a_document_that_is_too_long_is_said_to_be(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine.Handler, "limit", 3)
    with pytest.raises(DemoError, match=r"too long for the model.*maximum context length") as error:
        ask.Asker(engine).ask(QUESTION, 8)
    assert "shorter document" in error.value.hint


def test_an_engine_that_is_gone_is_an_error() -> None:
    with fake_engine.served() as base_url:
        pass
    with pytest.raises(DemoError, match="stopped answering"):
        ask.Asker(base_url).ask(QUESTION, 8)


@pytest.mark.parametrize("cut", ["before a token", "after a token", "reset"])
def test_an_engine_that_dies_while_it_answers_is_an_error(
    engine: str, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fake_engine.Handler.event

    def hang_up(handler: fake_engine.Handler, fields: dict[str, object]) -> None:
        if cut == "after a token":
            whole(handler, {"choices": [{"index": 0, "delta": {"content": "half"}}]})
        if cut == "reset":  # the kernel sends RST instead of an orderly end
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()
        raise ConnectionAbortedError

    monkeypatch.setattr(fake_engine.Handler, "event", hang_up)
    with pytest.raises(DemoError, match="stopped answering"):
        ask.Asker(engine).ask(QUESTION, 8)


def files(directory: Path, count: int) -> None:
    for number in range(count):
        folder = directory / "v1" / "0123456789abcdef" / "r0" / f"{number:03x}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:064x}.kv").touch()


def test_waiting_for_stores_ends_when_all_whole_chunks_are_there(tmp_path: Path) -> None:
    files(tmp_path, 9)
    late = threading.Timer(0.4, files, (tmp_path, 10))
    late.start()
    waited = measure.wait_until_stored(tmp_path, 10 * 256 + 100, patience_s=10)
    assert waited is not None
    assert 0.3 < waited < 2


def test_waiting_for_stores_goes_on_while_a_file_is_being_written(tmp_path: Path) -> None:
    files(tmp_path, 3)
    folder = next(tmp_path.glob("v1/0123456789abcdef/r0/*"))
    (folder / "host-1-0123456789abcdef").touch()
    assert measure.wait_until_stored(tmp_path, 700, patience_s=1) is None
    (folder / "host-1-0123456789abcdef").unlink()
    assert measure.wait_until_stored(tmp_path, 700, patience_s=5) is not None


def test_waiting_for_stores_is_bounded(tmp_path: Path) -> None:
    start = time.monotonic()
    assert measure.wait_until_stored(tmp_path, 2500, patience_s=0.5) is None
    assert time.monotonic() - start < 2


def measured(name: str, ttft: float, text: str = "same", loaded: int = 0) -> Measured:
    first = Answer(text, ttft, ttft + 1, 2500, 48, loaded)
    return Measured(name, name.partition("-")[0], 9.0, first, Answer(text, 0.1, 1.1, 2500, 48))


def test_speedup_compares_the_engines_that_had_not_seen_the_document() -> None:
    ttfts = {"plain-a": 7.0, "plain-b": 8.0, "lmkv-a": 7.5, "lmkv-b": 0.2}
    results = Results(tuple(measured(*item) for item in ttfts.items()))
    assert results.speedup == pytest.approx(40)
    assert results.answers_equal


def test_speedup_needs_both_kinds_of_engine() -> None:
    assert Results((measured("lmkv-a", 7.0), measured("lmkv-b", 0.2))).speedup is None


def test_one_different_answer_is_enough_for_a_difference() -> None:
    engines = [measured("plain-a", 7.0), measured("lmkv-a", 7.0), measured("lmkv-b", 0.2, "else")]
    assert not Results(tuple(engines)).answers_equal


class Dying:
    """An engine process as `measure` sees one, and the fleet that notices its death late."""

    class spec:  # noqa: N801
        name = "lmkv-b"

    def __init__(self, dies: bool) -> None:
        self.dies_at = time.monotonic() + 0.5 if dies else float("inf")

    def check(self) -> None:
        if time.monotonic() > self.dies_at:
            raise DemoError("engine lmkv-b died (exit status 1)", log="its last words")

    def last_lines(self) -> str:
        return "nothing special"


def fail() -> Answer:
    raise DemoError("the engine stopped answering: error 500")


def test_a_failed_answer_of_a_dying_engine_is_reported_as_its_death() -> None:
    with pytest.raises(DemoError, match="lmkv-b died") as error:
        measure._named(Dying(dies=True), Dying(dies=True), fail)  # type: ignore[arg-type]
    assert error.value.log == "its last words"


def test_a_failed_answer_of_a_living_engine_comes_with_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "_DEATH_PATIENCE_S", 0.3)
    with pytest.raises(DemoError, match="lmkv-b: the engine stopped answering") as error:
        measure._named(Dying(dies=False), Dying(dies=False), fail)  # type: ignore[arg-type]
    assert error.value.log == "nothing special"
