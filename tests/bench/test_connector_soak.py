"""``benchmarks/connector_soak.py`` for some seconds: real engines, real files, injected faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_random_requests_get_a_plain_engines_answers_and_leave_nothing(tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [
            sys.executable, ROOT / "benchmarks" / "connector_soak.py", "--path", tmp_path,
            "--minutes", "0.3", "--seed", "3", "--json", "-",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result["failures"] == []
    for engine in result["engines"]:
        assert engine["phases"] >= 1
        assert engine["seen"]["tokens_checked"] > 500
        assert engine["slabs_in_use"] == [0]
    assert list(tmp_path.iterdir()) == []
