"""benchmarks/soak.py for twenty seconds: real engines, real files, injected faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of


@pytest.mark.timeout(180)
def test_random_faults_lose_no_job_no_byte_and_no_memory(tmp_path: Path) -> None:
    result = result_of("soak.py", tmp_path, "--minutes", "0.33", "--seed", "5")
    assert result["failures"] == []
    assert result["phases"] >= 5
    assert result["slabs_in_use"] == [0]
    # It was no idle run: both ways, each engine, and many kinds of faults.
    for engine in result["engines"].values():
        assert engine["chunks_stored"] > 10, engine
        assert engine["chunks_loaded"] > 100, engine
        assert engine["loads_failed"] > 0, engine
    assert len({name.split(".")[1] for name in result["injected"]}) >= 5
