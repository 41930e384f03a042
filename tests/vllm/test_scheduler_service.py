"""When lmkv serves at all, and what it says when it does not."""

import time

import pytest
from scheduler_harness import (
    BLOCK,
    CHUNK,
    PER_CHUNK,
    Engine,
    key_of,
    put,
    seconds_per_call,
    window,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from lmkv import ConfigError
from lmkv.vllm.metadata import RootsOut, StepReport


def touched(engine):
    engine.request("a", 2 * CHUNK)
    steps = engine.run()
    return any(metadata.loads or metadata.stores for metadata in steps)


def test_nothing_is_served_before_the_workers_said_what_they_have(tiny_model, root):
    engine = Engine(tiny_model, root, hello=False)
    assert not touched(engine)
    engine.assert_at_rest()


def test_the_workers_report_serves_where_the_handshake_does_not_come(tiny_model, root):
    # MultiConnector hands on the handshake of one of its connectors only.
    engine = Engine(tiny_model, root, hello=False)
    engine.greet(object())
    assert not touched(engine)
    engine.side.greet({0: engine.hello()})
    engine.scheduler.reset_prefix_cache()
    engine.request("b", 2 * CHUNK)
    assert engine.step()[1].stores


def test_reports_of_ranks_add_up():
    first = StepReport(gathered={1: 1, 2: 1}, failed_chunks={"a": {0}})
    second = StepReport(
        hellos={1: "hello"}, gathered={1: 1}, ended={1: 1}, unstored={1},
        failed_chunks={"a": {2}, "b": {1}}, roots_out={1: RootsOut(frozenset({0}))},
    )  # fmt: skip
    assert StepReport(roots_out={0: RootsOut()}), "all are back"
    both = first.aggregate(second)
    assert both.gathered == {1: 2, 2: 1}
    assert both.roots_out == {1: RootsOut(frozenset({0}))}
    assert both.failed_chunks == {"a": {0, 2}, "b": {1}}
    assert (both.ended, both.unstored, list(both.hellos)) == ({1: 1}, {1}, [1])
    assert not StepReport()


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"namespace": b"other"}, "the ranks differ"),
        ({"namespace": b"", "refusal": "a reason"}, "a reason"),
        ({"chunk_tokens": 64}, "rank 1 has chunk_tokens: 64, not 128"),
        ({"path": ("/a", "/b")}, "rank 1 has path: '/a', '/b', not '"),
        ({"store_tail": False, "io_threads": 2}, "io_threads: 2, not 1; store_tail: False"),
    ],
)
def test_ranks_that_disagree_serve_nothing_and_say_so(tiny_model, root, lines, second, reason):
    engine = Engine(tiny_model, root, ranks=2, hello=False)
    engine.greet(engine.hello(), engine.hello(**second))
    assert not touched(engine)
    assert [line for line in lines() if reason in line]
    engine.assert_at_rest()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": [window(64)]}, "SlidingWindowSpec"),
        ({"prefix_caching": False}, "prefix caching is off"),
    ],
)
def test_what_cannot_be_cached_is_served_untouched_with_one_line(
    tiny_model, root, lines, options, reason
):
    engine = Engine(tiny_model, root, **options)
    assert not touched(engine)
    assert len([line for line in lines() if reason in line]) == 1
    engine.assert_at_rest()


def test_a_failure_policy_that_fails_requests_is_warned_of(tiny_model, root, lines):
    Engine(tiny_model, root)
    assert not [line for line in lines() if "kv_load_failure_policy" in line]
    Engine(tiny_model, root, policy="fail")
    assert [line for line in lines() if "kv_load_failure_policy" in line]


def test_settings_that_cannot_work_stop_the_start(tiny_model, root):
    with pytest.raises(ConfigError, match="did you mean chunk_tokens"):
        Engine(tiny_model, root, extra={"chunk_tokns": 4})
    with pytest.raises(ConfigError, match="block size"):
        Engine(tiny_model, root, extra={"chunk_tokens": CHUNK + 1})


def test_hits_are_said_to_come_from_disk(tiny_model, root):
    engine = Engine(tiny_model, root)
    request = engine.request("a", 2 * CHUNK)
    put(root, key_of(request, PER_CHUNK))
    engine.run()
    assert engine.connector.get_external_cache_hit_sources(request, 5) == {CacheHitSource.DISK: 5}
    assert engine.connector.requires_kv_delivery is False


def test_activity_is_one_line_a_minute(tiny_model, root, lines):
    engine = Engine(tiny_model, root)
    now = [1000.0]
    engine.side._activity._clock = lambda: now[0]
    engine.side._activity._since = now[0]
    for round_ in range(4):
        engine.request(f"r{round_}", [round_] * (CHUNK + 1))
        engine.run()
        now[0] += 35
    said = [line for line in lines() if "chunks stored" in line]
    assert len(said) == 1
    assert "2 chunks stored" in said[0] or "3 chunks stored" in said[0]


def test_counters_are_told_now_and_then_while_a_store_is_under_way(tiny_model, root, monkeypatch):
    monkeypatch.setattr("lmkv.vllm.scheduler.STATS_SECONDS", 1e9)
    engine = Engine(tiny_model, root)
    side = engine.side
    engine.worker.hold_files = True
    request = engine.request("a", CHUNK + 1, max_tokens=9)
    engine.step()
    assert side.stores_under_way
    side._told_at = time.monotonic()

    def told():
        side._meter.count("loads_late")
        side._stir()
        stats = side.take_stats()
        return stats.data["loads_late"] if stats else None

    assert [told(), told()] == [None, None]
    engine.abort(request)
    assert told() == 3, "there may be no step after it"
    assert told() is None
    engine.worker.hold_files = False
    engine.run()
    assert not side.stores_under_way
    assert told() == 1
    assert engine.counted["loads_late"] == 3 + 1 + 1
    assert side.take_stats() is None


def test_a_step_of_many_running_requests_is_a_short_loop_over_them(tiny_model, root):
    requests = 512
    engine = Engine(
        tiny_model, root, running=requests, budget=requests * BLOCK, blocks=3 * requests + 10,
        extra={"store_generated": True},
    )  # fmt: skip
    for index in range(requests):
        engine.request(f"r{index}", [index] * BLOCK, max_tokens=2 * BLOCK)
    for _ in range(3 + requests // 32):  # so many lookups a step
        engine.step()
    output = engine.scheduler.schedule()
    assert len(output.num_scheduled_tokens) == requests
    assert len(engine.side._stores._requests) == requests
    counts = output.num_scheduled_tokens

    def plain_loop():
        """Over as many: what one costs depends on the machine, and on what else it does."""
        total = 0
        for name in counts:
            total += counts[name]
        return total

    rounds = [
        (
            # So many that all of them are looked at, some in each.
            seconds_per_call(lambda: engine.side.step(output), calls=CHUNK, batches=1),
            seconds_per_call(plain_loop, calls=CHUNK, batches=1),
        )
        for _ in range(5)
    ]
    step, loop = (min(times) for times in zip(*rounds, strict=True))
    assert step < 50 * loop, f"{step * 1e6:.0f} and {loop * 1e6:.0f} us"
