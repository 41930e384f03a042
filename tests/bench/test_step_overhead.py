"""``benchmarks/step_overhead.py``: a real engine's steps, briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "step_overhead.py"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_call_of_a_step_is_timed_and_only_one_engine_stores(tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [
            sys.executable, PROGRAM, "--path", tmp_path, "--running", "16", "--steps", "150",
            "--json", "-",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    empty, idle, storing = json.loads(done.stdout)["rows"]
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
    assert list(tmp_path.iterdir()) == []
