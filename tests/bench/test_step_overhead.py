"""``benchmarks/step_overhead.py``: a real engine's steps, briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_call_of_a_step_is_timed_and_only_one_engine_stores(tmp_path: Path) -> None:
    result = result_of("step_overhead.py", tmp_path, "--running", "16", "--steps", "150")
    empty, idle, storing = result["rows"]
    assert [row["kind"] for row in (empty, idle, storing)] == ["empty", "idle", "storing"]
    assert empty["connector"] == "EmptyConnector"
    assert idle["connector"] == storing["connector"] == "LMKVConnector"
    for row in (empty, idle, storing):
        assert row["running"] == 16
        assert row["steps"] == 150
        assert row["calls"]["scheduler"]["build_connector_meta"]["per_step"] == 1
        assert row["calls"]["worker"]["start_load_kv"]["per_step"] == 1
        for side in ("scheduler_us", "worker_us"):
            # Its budgets are for a quiet machine; a disk or a lock in a step shows anywhere.
            assert 0 < row[side]["p50"] < 2000
            assert row[side]["p50"] <= row[side]["p99"]
            assert row[side]["p50"] < row["step_us"]["p50"]
    assert empty["chunks_stored"] == idle["chunks_stored"] == 0
    assert storing["chunks_stored"] >= 10  # one in eight steps
