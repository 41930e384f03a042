"""What a scheduler learns of a remote tier, and how long it waits for that."""

import threading
import time
from collections.abc import Sequence

import pytest

from lmkv.errors import ConfigError
from lmkv.remote import lookup as module
from lmkv.remote.lookup import RemoteLookup


class Remote:
    """Says what is there; may be held up, fail, or not be reached."""

    def __init__(self, *keys: bytes) -> None:
        self.keys = set(keys)
        self.asked: list[list[bytes]] = []
        self.held = threading.Event()
        self.held.set()
        self.fails = False
        self.is_closed = threading.Event()

    def present(self, keys: Sequence[bytes]) -> list[bool]:
        self.asked.append(list(keys))
        self.held.wait(20)
        if self.fails:
            raise OSError("no answer")
        return [key in self.keys for key in keys]

    def close(self) -> None:
        self.is_closed.set()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(n: int) -> bytes:
    return bytes([n]) * 32


KEYS = [key(n) for n in range(6)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(remote: Remote, clock: Clock) -> RemoteLookup:
    lookup = RemoteLookup(lambda: remote, clock=clock)
    wait_for(lambda: not lookup.is_out)
    lookup.begin_request(clock.now)
    return lookup


def wait_for(holds: object) -> None:
    deadline = time.monotonic() + 20
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def answer(lookup: RemoteLookup, keys: Sequence[bytes]) -> list[bool]:
    """Of a new request."""
    lookup.begin_request(lookup._clock())
    wait_for(lambda: lookup.present(keys) is not None)
    found = lookup.present(keys)
    assert found is not None
    return found


def test_it_asks_once_and_remembers(clock: Clock) -> None:
    remote = Remote(key(0), key(1))
    lookup = started(remote, clock)
    assert lookup.leading(KEYS) is None
    assert answer(lookup, KEYS) == [True, True, False, False, False, False]
    assert lookup.leading(KEYS) == 2
    assert lookup.leading([]) == 0
    assert remote.asked == [KEYS]


def test_absence_is_believed_for_less_long(clock: Clock) -> None:
    remote = Remote(key(0))
    lookup = started(remote, clock)
    answer(lookup, KEYS[:2])
    remote.keys.add(key(1))
    clock.now += module.ABSENT_SECONDS + 0.1
    assert answer(lookup, KEYS[:2]) == [True, True]
    assert remote.asked == [KEYS[:2], [key(1)]]
    clock.now += module.PRESENT_SECONDS + 0.1
    answer(lookup, KEYS[:2])
    assert remote.asked[2] == KEYS[:2]


def test_nobody_waits_long_for_an_answer(clock: Clock) -> None:
    remote = Remote(*KEYS)
    remote.held.clear()
    lookup = started(remote, clock)
    assert lookup.present(KEYS) is None
    wait_for(lambda: remote.asked)
    clock.now += module.SHORTEST_WAIT_SECONDS + 0.001
    assert lookup.present(KEYS) == [False] * 6
    assert lookup.given_up == 6
    assert lookup.present(KEYS) == [False] * 6, "once is enough"
    # While it hangs nothing else waits, either.
    clock.now += 2 * module.LONGEST_WAIT_SECONDS
    assert lookup.is_out
    assert lookup.present([key(9)]) == [False]
    remote.held.set()
    wait_for(lambda: not lookup.is_out)
    assert answer(lookup, KEYS) == [True] * 6


def test_one_that_is_usually_slow_is_waited_for(clock: Clock) -> None:
    remote = Remote(*KEYS)
    lookup = started(remote, clock)
    for n in range(40):
        remote.held.clear()
        lookup.begin_request(clock.now)
        assert lookup.present([bytes([100 + n]) * 32]) is None
        wait_for(lambda n=n: len(remote.asked) > n)
        clock.now += 0.015
        remote.held.set()
        answer(lookup, [bytes([100 + n]) * 32])
    remote.held.clear()
    lookup.begin_request(clock.now)
    assert lookup.present(KEYS) is None
    clock.now += 5 * 0.015
    assert lookup.present(KEYS) is None
    clock.now += 5 * 0.015
    assert lookup.present(KEYS) == [False] * 6
    remote.held.set()


def test_after_failures_one_question_in_a_while_is_a_trial(clock: Clock) -> None:
    remote = Remote(*KEYS)
    remote.fails = True
    lookup = started(remote, clock)
    for n in range(module.FAILURES):
        assert not lookup.is_out
        answer(lookup, [key(10 + n)])
    wait_for(lambda: lookup.is_out)
    asked = len(remote.asked)
    assert lookup.present(KEYS) == [False] * 6
    clock.now += module.FIRST_PAUSE_SECONDS + 0.1
    assert lookup.present(KEYS) == [False] * 6, "a trial, for which nobody waits"
    wait_for(lambda: len(remote.asked) == asked + 1)
    wait_for(lambda: lookup.is_out)
    # The next comes after twice the time.
    clock.now += module.FIRST_PAUSE_SECONDS + 0.1
    assert lookup.is_out
    clock.now += module.FIRST_PAUSE_SECONDS
    remote.fails = False
    lookup.present([key(20)])
    wait_for(lambda: len(remote.asked) == asked + 2)
    clock.now += module.ABSENT_SECONDS
    wait_for(lambda: answer(lookup, KEYS[:1]) == [True])


def test_switched_off_it_finds_nothing(clock: Clock) -> None:
    remote = Remote(*KEYS)
    lookup = started(remote, clock)
    answer(lookup, KEYS)
    lookup.switch(on=False)
    lookup.begin_request(clock.now)
    assert lookup.present([key(20)]) == [False]
    assert remote.asked == [KEYS]
    lookup.switch(on=True)
    assert answer(lookup, KEYS) == [True] * 6


def test_what_is_forgotten_is_asked_again(clock: Clock) -> None:
    remote = Remote(*KEYS)
    lookup = started(remote, clock)
    answer(lookup, KEYS)
    lookup.forget()
    lookup.begin_request(clock.now)
    assert lookup.present(KEYS) is None
    answer(lookup, KEYS)
    assert remote.asked == [KEYS, KEYS]


def test_one_that_is_not_reached_is_tried_again(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    tries: list[int] = []
    remote = Remote(*KEYS)

    def open_presence() -> Remote:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("nobody is there")
        return remote

    lookup = RemoteLookup(open_presence, clock=clock)
    assert lookup.present(KEYS) == [False] * 6 or len(tries) == 3
    wait_for(lambda: not lookup.is_out)
    assert answer(lookup, KEYS) == [True] * 6


def test_one_that_cannot_ever_be_is_given_up(clock: Clock) -> None:
    tries: list[int] = []

    def open_presence() -> Remote:
        tries.append(1)
        raise ConfigError("its library is missing")

    lookup = RemoteLookup(open_presence, clock=clock)
    wait_for(lambda: tries)
    assert lookup.present(KEYS) == [False] * 6
    assert lookup.is_out


def test_closed_it_gives_back_what_it_had(clock: Clock) -> None:
    remote = Remote()
    lookup = started(remote, clock)
    lookup.close()
    assert remote.is_closed.wait(20)


def test_what_is_remembered_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 4)
    remote = Remote(*KEYS)
    lookup = started(remote, clock)
    for n in range(6):
        answer(lookup, [key(n)])
    lookup.present([key(0)])
    wait_for(lambda: len(remote.asked) == 7)
    assert len(lookup._known) <= 4


def test_a_request_waits_once_whatever_it_asks(clock: Clock) -> None:
    """Chunks, then tails, then windows: each is another question."""
    remote = Remote(*KEYS)
    remote.held.clear()
    lookup = started(remote, clock)
    lookup.begin_request(clock.now, worth=0.01)
    assert lookup.present(KEYS[:2]) is None
    clock.now += 0.009
    assert lookup.present(KEYS[2:4]) is None
    clock.now += 0.002
    assert lookup.present(KEYS[4:]) == [False, False]
    remote.held.set()


def test_the_newest_are_asked_first_and_not_all_of_a_burst(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WANTED", 8)
    monkeypatch.setattr(module, "BATCH_KEYS", 4)
    remote = Remote()
    remote.held.clear()
    lookup = started(remote, clock)
    lookup.present([key(99)])
    wait_for(lambda: remote.asked)
    for prompt in range(5):
        lookup.present([key(10 * prompt + n) for n in range(4)])
    remote.held.set()
    wait_for(lambda: len(remote.asked) == 3)
    assert remote.asked[1:] == [[key(40 + n) for n in range(4)], [key(30 + n) for n in range(4)]]
    time.sleep(0.05)
    assert len(remote.asked) == 3, "the rest was dropped"
    assert len(lookup._not_awaited) == 0


@pytest.mark.parametrize("manner", ["fails", "short"])
def test_why_nothing_is_found_is_said_once_and_when_it_is_again(clock: Clock, manner: str) -> None:
    remote, said = Remote(*KEYS), []
    lookup = RemoteLookup(lambda: remote, said.append, clock)
    wait_for(lambda: said == [""])
    present = remote.present
    if manner == "short":
        remote.present = lambda keys: present(keys)[:-1]  # type: ignore[method-assign]
    remote.fails = manner == "fails"
    for n in range(module.FAILURES):
        answer(lookup, [key(10 + n)])
    wait_for(lambda: len(said) == 2)
    assert ("no answer" if manner == "fails" else "0 answers to 1") in said[1]
    remote.fails, remote.present = False, present  # type: ignore[method-assign]
    clock.now += module.FIRST_PAUSE_SECONDS + 0.1
    lookup.present(KEYS)
    wait_for(lambda: said[2:] == [""])
