import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from scheduler_harness import Engine

from lmkv._C import Engine as CoreEngine
from lmkv._C import EngineOptions
from lmkv.vllm import LMKVConnector
from lmkv.vllm.metrics import (
    COUNTERS,
    ENGINE_COUNTERS,
    ENGINE_GAUGES,
    GAUGES,
    HISTOGRAMS,
    Deltas,
    LMKVStats,
    prometheus_name,
)


def test_deltas_are_what_moved_since_the_last_time():
    deltas = Deltas()
    assert deltas.take({"chunks_stored": 0, "slabs_free": 9}) is None
    assert deltas.take({"chunks_stored": 2, "slabs_free": 3}).data == {"chunks_stored": 2}
    assert deltas.take({"chunks_stored": 2, "slabs_free": 5}) is None
    assert deltas.take({"chunks_stored": 5, "chunks_bad": 1}).data == {
        "chunks_stored": 3,
        "chunks_bad": 1,
    }


def test_gauges_are_said_when_they_change_and_the_last_value_counts():
    deltas = Deltas()
    assert deltas.take({"store_bytes_used": 9, "chunks_stored": 1}).data == {
        "store_bytes_used": 9,
        "chunks_stored": 1,
    }
    assert deltas.take({"store_bytes_used": 9, "chunks_stored": 1}) is None
    assert deltas.take({"store_bytes_used": 5, "chunks_stored": 1}).data == {"store_bytes_used": 5}
    stats = LMKVStats(data={"store_bytes_used": 7}).aggregate(
        LMKVStats(data={"store_bytes_used": 5})
    )
    assert stats.reduce() == {"store_bytes_used": 5}


def test_what_ranks_may_see_otherwise_is_not_said_by_one_of_them():
    assert Deltas().take({"loads_out_of_service": 1, "stores_out_of_service": 1}) is None


def test_a_gauge_that_falls_to_nothing_is_news():
    assert not LMKVStats(data={"loads_out_of_service": 0}).is_empty()
    assert LMKVStats(data={}).is_empty()


def test_stats_of_ranks_add_up_and_survive_the_way_to_the_logger():
    stats = LMKVStats(data={"chunks_stored": 1}).aggregate(
        LMKVStats(data={"chunks_stored": 2, "tokens_loaded": 64})
    )
    there = LMKVConnector.build_kv_connector_stats(stats.to_dict())
    assert there.reduce() == {"chunks_stored": 3, "tokens_loaded": 64}
    assert not there.is_empty()
    there.reset()
    assert there.is_empty()
    assert LMKVConnector.build_kv_connector_stats().is_empty()


def test_every_counter_is_exposed_by_engine(tiny_model, root):
    registry = CollectorRegistry()

    def registered(kind):
        def make(name, documentation, labelnames, **more):
            return kind(name, documentation, labelnames, registry=registry, **more)

        return make

    metrics = LMKVConnector.build_prom_metrics(
        Engine(tiny_model, root).config,
        {kind: registered(kind) for kind in (Counter, Gauge, Histogram)},
        ["model_name", "engine"],
        {0: ["m", "0"], 1: ["m", "1"]},
    )
    metrics.observe({"tokens_loaded": 256, "chunks_bad": 1}, 1)
    metrics.observe({"tokens_loaded": 32, "reading_microseconds": 250_000}, 1)
    text = generate_latest(registry).decode()
    assert 'vllm:lmkv_tokens_loaded_total{engine="1",model_name="m"} 288.0' in text
    assert 'vllm:lmkv_chunks_bad_total{engine="1",model_name="m"} 1.0' in text
    assert 'vllm:lmkv_reading_seconds_total{engine="1",model_name="m"} 0.25' in text
    metrics.observe({"store_bytes_used": 4096}, 1)
    metrics.observe({"store_bytes_used": 1024}, 1)
    text = generate_latest(registry).decode()
    assert 'vllm:lmkv_store_bytes_used{engine="1",model_name="m"} 1024.0' in text
    for name in COUNTERS | GAUGES:
        assert f'{prometheus_name(name)}{{engine="0",model_name="m"}} 0.0' in text
    metrics.observe({"load_seconds": [0.004, 0.25]}, 1)
    text = generate_latest(registry).decode()
    for name in HISTOGRAMS:
        assert f'{prometheus_name(name)}_count{{engine="0",model_name="m"}} 0.0' in text
    labels = 'engine="1",le="0.01",model_name="m"'
    assert f"vllm:lmkv_load_seconds_bucket{{{labels}}} 1.0" in text
    assert 'vllm:lmkv_load_seconds_sum{engine="1",model_name="m"} 0.254' in text


def test_what_was_observed_adds_up_and_is_logged_as_a_mean():
    one, two = LMKVStats(data={"load_seconds": [0.1]}), LMKVStats(data={"load_seconds": [0.2, 0.6]})
    both = LMKVStats().aggregate(one).aggregate(two)
    assert both.data == {"load_seconds": [0.1, 0.2, 0.6]}
    assert one.data == {"load_seconds": [0.1]}, "it is not changed"
    assert both.reduce() == {"load_seconds_mean": 0.3}


def test_every_counter_of_the_core_is_known(root):
    # One that is not named in metrics.py would be lost.
    cache = torch.zeros(4, 1024)
    options = EngineOptions(
        root=str(root),
        namespace=bytes(32),
        rank=0,
        segments=[(cache.data_ptr(), 4096, 4096)],
        block_count=4,
        block_tokens=16,
        blocks_per_chunk=2,
        host_memory=1 << 20,
    )
    core = CoreEngine(options)
    own = {name for name in core.stats() if name.startswith("slabs_") or "in_flight" in name}
    of_the_scheduler = {"loads_out_of_service", "stores_out_of_service"}
    assert core.stats().keys() - own == (
        ENGINE_COUNTERS.keys() | ENGINE_GAUGES.keys() | of_the_scheduler
    )
    core.close()
