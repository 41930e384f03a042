"""What is known to be in the directory, for how long, and how much of it."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lmkv.vllm import known
from lmkv.vllm.known import KNOWN_SECONDS, KnownChunks

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_it_is_believed_for_a_minute_from_when_it_was_last_seen():
    clock = Clock()
    chunks = KnownChunks(clock)
    chunks.add([A])
    assert A in chunks
    assert B not in chunks
    clock.now += KNOWN_SECONDS - 1
    assert A in chunks
    chunks.add([A])
    clock.now += KNOWN_SECONDS - 1
    assert A in chunks
    clock.now += 1
    assert A not in chunks


def test_what_is_gone_is_not_known():
    chunks = KnownChunks(Clock())
    chunks.add([A, B])
    chunks.discard([A, C])
    assert A not in chunks
    assert B in chunks
    chunks.clear()
    assert B not in chunks


def test_a_use_is_said_once_a_tick_of_what_is_known():
    clock = Clock()
    chunks = KnownChunks(clock)
    assert [chunks.use(A, 7), chunks.use(A, 7)] == [True, True]  # nobody would remember it
    chunks.add([A])
    assert [chunks.use(A, 7), chunks.use(A, 7), chunks.use(A, 6)] == [True, False, False]
    chunks.add([A])  # seen again, and used no more than before
    assert not chunks.use(A, 7)
    assert chunks.use(A, 8)
    clock.now += 2 * KNOWN_SECONDS  # no longer believed, and said all the same
    assert not chunks.use(A, 8)


def test_the_newest_are_remembered(monkeypatch):
    monkeypatch.setattr(known, "KNOWN_CHUNKS", 2)
    chunks = KnownChunks(Clock())
    chunks.add([A, B])
    chunks.add([A])
    chunks.add([C])
    assert [key in chunks for key in (A, B, C)] == [True, False, True]
