"""``benchmarks/peers.py``: lmkv and vLLM's own ExampleConnector, real engines; briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "peers.py"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_system_stores_and_loads_the_same_document(tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [
            sys.executable, PROGRAM, "--path", tmp_path, "--documents", "1", "--tokens", "900",
            "--peers", "example", "--json", "-",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result.keys() == {"plain", "lmkv", "example", "documents"}
    for name in ("lmkv", "example"):
        one = result[name]
        # 28 blocks of 32 tokens, of which either leaves out what it must.
        assert 27 * 1_474_560 < one["bytes"] < 30 * 1_474_560
        assert one["same_answers"] == 1
        assert one["hit_ms"] > 0
    assert result["lmkv"]["hit_ratio"] == 1
    assert list(tmp_path.iterdir()) == []
