"""What the page says of a comparison is what its numbers say: ahead, behind, or neither."""

from __future__ import annotations

from typing import Any

import pytest
from programs import BENCHMARKS


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def peers(ratio: float, spread: list[float]) -> dict[str, Any]:
    row = {"lmkv": {"store": 2.0, "cold": 2.0}, "example": {"store": 3.0, "cold": 2.0}}
    title = "vLLM's ExampleConnector"
    one = {"title": title, "hit_ratio": ratio, "hit_ratio_range": spread, "bytes": 115e6}
    other = {"title": "another", "failed": "it did not start"}
    lmkv = {"title": "lmkv", "bytes": 116e6, "hit_ratio": 1.0, "hit_ratio_range": [1.0, 1.0]}
    systems = {"lmkv": lmkv, "example": one, "offloading": other}
    return {"systems": systems, "documents": [row] * 5}


@pytest.mark.parametrize(
    ("ratio", "spread", "said", "has_reason"),
    [
        (1.4, [1.1, 1.6], "lmkv is ahead: a hit takes 1.40 (1.10 to 1.60) times as long", False),
        (0.93, [0.84, 1.19], "no difference is shown: a hit takes 0.93 (0.84 to 1.19)", True),
        (0.7, [0.6, 0.9], "lmkv is behind: a hit takes 0.70 (0.60 to 0.90)", True),
    ],
)
def test_of_each_peer_that_ran_it_is_said_who_is_ahead_and_why_lmkv_is_not(
    ratio: float, spread: list[float], said: str, has_reason: bool
) -> None:
    import verdicts

    (line,) = verdicts.peers(peers(ratio, spread))
    assert line.startswith(f"vLLM's ExampleConnector: {said}")
    assert ("it for 115 MB, lmkv for 116 MB. It reads a file for each layer" in line) == has_reason
    assert "Storing costs 1.50 (1.50 to 1.50) of lmkv's: more." in line


def test_every_peer_that_can_be_measured_says_how_its_hits_go() -> None:
    from peer_systems import SYSTEMS

    without = {name for name, system in SYSTEMS.items() if not system.way}
    assert without == {"lmkv", "lmcache_in_process", "offloading"}  # the two do not run here


def layer(load: float, spread: list[float]) -> dict[str, Any]:
    found = {"title": "vLLM's fs tier", "checks": "", "bytes": 94e6}
    for name, value, ends in (
        ("load", load, spread), ("store", 0.5, [0.4, 0.6]), ("disk", 1.5, [1.25, 1.75]),
    ):  # fmt: skip
        found |= {f"{name}_ms": 50.0, f"{name}_ratio": value, f"{name}_ratio_range": ends}
    return found


@pytest.mark.parametrize(
    ("load", "spread", "said"),
    [
        (1.4, [1.1, 1.6], "1.40 (1.10 to 1.60) of lmkv's time: lmkv is ahead."),
        (0.9, [0.8, 1.1], "0.90 (0.80 to 1.10) of lmkv's time: no difference is shown."),
        (0.7, [0.6, 0.9], "0.70 (0.60 to 0.90) of lmkv's time: lmkv is behind."),
    ],
)
def test_of_each_layer_it_is_said_where_lmkv_is_ahead_and_why(
    load: float, spread: list[float], said: str
) -> None:
    import tables
    import verdicts

    failed = {"title": "another", "checks": "", "failed": "OSError: no", "published": "elsewhere"}
    layers = {
        "lmkv": layer(1.0, [1.0, 1.0]), "lmkv_slabs": layer(0.8, [0.75, 0.875]),
        "vllm_fs": layer(load, spread), "lmcache_fs": failed,
    }  # fmt: skip
    result = {"bytes": 94e6, "layers": layers}
    line, copies = verdicts.storage_layers(result)
    assert "its loads take 0.80 (0.75 to 0.88) of its time, its stores 0.50" in copies
    assert line.startswith(f"vLLM's fs tier: Loads take {said} Stores, as it says, take 0.50")
    assert "on the disk take 1.50 (1.25 to 1.75) of lmkv's time: lmkv is ahead." in line
    assert "No byte is verified" in line
    text = tables.markdown(tables.storage_layers(result))
    assert "| another |  | OSError: no; elsewhere |" in text


def test_every_layer_of_a_peer_says_why_it_is_as_quick_as_it_is_and_what_others_measured() -> None:
    from layer_systems import LAYERS

    peers = {name: kind for name, kind in LAYERS.items() if not name.startswith("lmkv")}
    assert all(kind.way and kind.published for kind in peers.values())


def test_only_what_misses_its_target_is_said_to() -> None:
    import verdicts

    result = {
        "documents": [{"bytes": 94e6}],
        "targets": {"miss_vs_cold": 1.01, "memory_hit_vs_prefix_cache_hit": 1.1},
        "ratios": {"miss_vs_cold": 1.0, "memory_hit_vs_prefix_cache_hit": 1.24},
        "ranges": {"miss_vs_cold": [0.7, 1.4], "memory_hit_vs_prefix_cache_hit": [1.09, 1.33]},
    }
    (line,) = verdicts.ttft(result)
    assert line.startswith(
        "Missed: a hit in host memory takes 1.24 (1.09 to 1.33) of one in vLLM's"
    )
    assert "1.10 is aimed at (the range holds the target)" in line
    assert "copies the 94 MB" in line


def test_steps_over_their_budget_stand_beside_what_nothing_takes() -> None:
    import verdicts

    result = {
        "budgets_us": {"worker": 50.0},
        "worker_idle_us": {"1": 30.0, "512": 71.0},
        "worker_empty_us": {"1": 16.0, "512": 43.0},
    }
    (line,) = verdicts.steps(result)
    assert "50 µs: the worker's side with 512 running requests, 71 µs" in line
    assert "takes 43 µs there" in line


def test_of_the_disk_it_is_said_where_fio_is_quicker() -> None:
    import verdicts

    slow = {"ratio": 0.9, "checksum_share": 0.12, "gbps": 1.2, "cpu_s_per_gb": 0.2}
    quick = {**slow, "ratio": 1.1}
    open_ = {**slow, "ratio_range": [0.8, 1.1]}
    result = {
        "by_chunk_mib": {"1": {"store": quick, "load": slow}, "6": {"store": quick, "load": open_}}
    }
    first, second = verdicts.io(result)
    assert first.startswith("Behind: loads of 1 MiB go at 0.90 of fio's rate.")
    assert "50% of their CPU" in first
    assert second.startswith("No difference is shown: loads of 6 MiB go at 0.90 (0.80 to 1.10)")


def test_a_decode_is_said_to_be_slower_only_if_its_whole_range_is() -> None:
    import verdicts

    same = {f"{label}_ratio": 1.01 for label in ("p50", "p99")}
    same |= {f"{label}_ratio_range": [0.99, 1.04] for label in ("p50", "p99")}
    slower = {**same, "p99_ratio": 1.2, "p99_ratio_range": [1.1, 1.3]}
    about = {"cores": 2}
    (line,) = verdicts.interference({"storing": same, "loading": same, "about": about})
    assert line.startswith("No range lies above 1")
    (line,) = verdicts.interference({"storing": slower, "loading": same, "about": about})
    assert line.startswith("Behind: while prompts are stored, p99 is 1.20 (1.10 to 1.30)")


def test_a_workload_that_is_not_quicker_and_a_copy_that_is_are_said_to_be() -> None:
    import verdicts

    result = {
        "multi_turn": {"speedup": 1.1, "speedup_range": [0.9, 1.3]},
        "prefix_repetition": {"speedup": 1.5, "speedup_range": [1.2, 1.7]},
    }
    (line,) = verdicts.workloads(result)
    assert line.startswith("multi turn: no difference is shown: 1.10 (0.90 to 1.30)")
    row = {"fragment_bytes": 4096, "gather_ratio": 0.6, "scatter_ratio": 1.1}
    (line,) = verdicts.transfer({"by_fragment": [row]})
    assert line.startswith("Below one copy in 1 of 2 cases, at worst gather of 4 KiB with 0.60")


def test_lengths_that_are_computed_sooner_are_named() -> None:
    import verdicts

    rows = [
        {"tokens": tokens, "cold_ms": 100.0, "disk_hit_ms": loaded}
        for tokens, loaded in ((64, 120.0), (128, 80.0))
    ]
    (line,) = verdicts.break_even({"by_tokens": rows})
    assert line.startswith("Behind: 64 tokens are loaded in 120 ms and computed in 100 ms")


def test_loads_that_are_too_far_from_memcpy_are_said_to_be() -> None:
    import tables
    import verdicts

    def row(ratio: float) -> dict[str, Any]:
        found: dict[str, Any] = {"ratio": ratio, "ratio_range": [0.5, 0.95]}
        for way in ("scatter", "memcpy"):
            found |= {f"{way}_gbps": 20.0, f"{way}_gbps_range": [19.0, 21.0]}
        return found | {"first_scatter_gbps": 7.25}

    result = {
        "cores": 2,
        "target": 0.9,
        "attach_ms": {"arena": 2.5, "own": 2.25, "more": 0.25, "more_range": [-1, 1], "view": 0.1},
        "lookup_ns_per_key": {"present": 50.0, "absent": 300.0},
        "lookup_512_us": {"p50": 25.0, "p99": 30.0},
        "by_processes": {"1": row(0.95), "4": row(0.8)},
    }
    missed, turns, first = verdicts.memory(result)
    assert missed == (
        "Missed: with 4 at once loads have 0.80 (0.50 to 0.95) of memcpy's rate, 0.90 is aimed at "
        "(the range holds the target)."
    )
    assert "than there are cores (2)" in turns
    assert "7.2, 7.2 GB/s" in first
    text = tables.markdown(tables.memory(result))
    assert "| 20.0 (19.0 to 21.0) | 20.0 (19.0 to 21.0) | 0.95 (0.50 to 0.95) of memcpy |" in text
    assert "| one that is not there, µs | 0.3 |" in text
