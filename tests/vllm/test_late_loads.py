import pytest

from lmkv.vllm.late_loads import AFTER_SECONDS, LateLoads
from lmkv.vllm.metadata import ChunkLoad, Load


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Core:
    """What an engine counts."""

    def __init__(self):
        self.counts = {
            "chunks_loaded": 7,
            "bytes_loaded": 1000,
            "bytes_loaded_remote": 0,
            "reading_microseconds": 0,
            "load_bytes_in_flight": 0,
        }

    def stats(self):
        return dict(self.counts)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def core():
    return Core()


@pytest.fixture
def watch(clock):
    return LateLoads(clock)


def load(within, worth, chunks=4):
    parts = [ChunkLoad(bytes(32), 0, 4, 0, [0, 1, 2, 3]) for _ in range(chunks)]
    return Load("a", parts, 0.0, within, worth)


def test_a_load_is_late_when_its_time_is_over_and_nothing_came(watch, clock, core):
    watch.begin(1, load(0.1, 1.0), core.stats())
    clock.now += 0.1
    assert watch.take_late(core.stats) == []
    clock.now += 0.01
    assert watch.take_late(core.stats) == [1]
    assert watch.take_late(core.stats) == [], "once"


def test_what_arrives_is_worth_what_computing_it_would_have_taken(watch, clock, core):
    watch.begin(1, load(0.1, 1.0), core.stats())
    core.counts["chunks_loaded"] += 2
    clock.now += 0.49
    assert watch.take_late(core.stats) == []
    clock.now += 0.02
    assert watch.take_late(core.stats) == [1]


def test_what_arrives_for_others_counts_too(watch, clock, core):
    for job in range(16):
        watch.begin(job, load(0.1, 1.0), core.stats())
    # All of them take turns: each has one chunk after what four loads alone would take.
    core.counts["chunks_loaded"] += 16
    clock.now += 3.9
    assert watch.take_late(core.stats) == []
    clock.now += 0.2
    assert watch.take_late(core.stats) == list(range(16))


def test_a_load_that_ended_is_not_late(watch, clock, core):
    watch.begin(1, load(0.1, 1.0), core.stats())
    watch.end(1)
    clock.now += 9
    assert not watch
    assert watch.take_late(core.stats) == []


def test_what_is_read_after_a_load_was_given_up_says_how_fast_the_directory_is(watch, clock, core):
    watch.begin(1, load(0.1, 1.0), core.stats())
    core.counts["load_bytes_in_flight"] = 500
    clock.now += 1
    assert watch.take_late(core.stats) == [1]
    assert watch, "there is more to see"
    assert watch.take_read(core.stats) == (0, 0.0, False)
    core.counts.update(bytes_loaded=1800, reading_microseconds=4_000_000, load_bytes_in_flight=0)
    assert watch.take_read(core.stats) == (800, 4.0, False)
    assert not watch
    assert watch.take_read(core.stats) == (0, 0.0, False)


def test_what_the_remote_tier_brought_is_said_to_be_its(watch, clock, core):
    watch.begin(1, load(0.1, 1.0), core.stats())
    core.counts["remote_load_bytes_in_flight"] = 500
    clock.now += 1
    assert watch.take_late(core.stats) == [1]
    assert watch.take_read(core.stats) == (0, 0.0, False)
    core.counts.update(
        bytes_loaded=1800,
        bytes_loaded_remote=700,
        reading_microseconds=4_000_000,
        remote_load_bytes_in_flight=0,
    )
    assert watch.take_read(core.stats) == (800, 4.0, True)


def test_a_directory_that_hangs_is_not_looked_at_for_ever(watch, clock, core):
    watch.begin(1, load(0.1, 1.0), core.stats())
    core.counts["load_bytes_in_flight"] = 500
    clock.now += 1
    assert watch.take_late(core.stats) == [1]
    clock.now += AFTER_SECONDS
    assert watch.take_read(core.stats) == (0, 0.0, False)
    assert not watch
