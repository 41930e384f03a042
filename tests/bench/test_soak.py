"""benchmarks/soak.py for twenty seconds: real engines, real files, injected faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_random_faults_lose_no_job_no_byte_and_no_memory(tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [
            sys.executable, ROOT / "benchmarks" / "soak.py", "--path", tmp_path,
            "--minutes", "0.33", "--seed", "5", "--json", "-",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == []
    assert result["phases"] >= 5
    assert result["slabs_in_use"] == [0]
    # It was no idle run: both ways, each engine, and many kinds of faults.
    for engine in result["engines"].values():
        assert engine["chunks_stored"] > 10, engine
        assert engine["chunks_loaded"] > 100, engine
        assert engine["loads_failed"] > 0, engine
    assert len({name.split(".")[1] for name in result["injected"]}) >= 5
    assert list(tmp_path.iterdir()) == []
