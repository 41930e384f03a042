"""``benchmarks/ttft.py``: real engines, with and without lmkv, on misses and hits; briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of

TOKENS = 4 * 256 + 1


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kind_of_hit_is_what_it_says_and_nothing_is_left(tmp_path: Path) -> None:
    result = result_of(
        "ttft.py", tmp_path, "--documents", "2", "--pairs", "1", "--tokens", str(TOKENS)
    )
    assert len(result["documents"]) == 2
    for row in result["documents"]:
        assert row["bytes"] > 4 * 11_000_000
        assert row["bound"] == pytest.approx(row["fio"] + 2 * row["prefix_cache_hit"])
        for hit in ("prefix_cache_hit", "memory_hit", "node_hit", "disk_hit"):
            assert 0 < row[hit] < row["stored"]
    assert [row["is_trial"] for row in result["pairs"]] == [1, 0]  # the next is half a minute later
    assert len(result["slow_disk_trials"]) == 1
    for row in result["pairs"]:
        assert row["slow_disk"] < 20  # and not until that disk has answered
    for name, ratio in result["ratios"].items():
        low, high = result["ranges"][name]
        assert low <= ratio <= high
    first, second = result["counters"]["first"], result["counters"]["second"]
    # Of each document three memory hits in the one, and a hit in the directory in the other.
    assert first["tokens_loaded"] == first["tokens_loaded_memory"] == 3 * 2 * (TOKENS - 1)
    assert second["tokens_loaded"] == 2 * (TOKENS - 1)
    assert second["tokens_loaded_memory"] == 0
    neighbour = result["counters"]["neighbour"]
    assert neighbour["tokens_loaded"] == neighbour["tokens_loaded_memory"] == 2 * (TOKENS - 1)
    assert neighbour["bytes_loaded"] == 0
    slow = result["counters"]["slow"]
    assert slow.get("tokens_loaded", 0) == 0
    assert slow["loads_late"] == slow["load_decisions_trial"] == 1
    assert slow["load_decisions_compute"] == 1
