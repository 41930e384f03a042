"""``benchmarks/ttft.py``: real engines, with and without lmkv, on misses and hits; briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "ttft.py"
TOKENS = 4 * 256 + 1


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kind_of_hit_is_what_it_says_and_nothing_is_left(tmp_path: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [
            sys.executable, str(PROGRAM), "--path", str(tmp_path), "--documents", "2",
            "--tokens", str(TOKENS), "--json", "-",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert len(result["documents"]) == 2
    for row in result["documents"]:
        assert row["bytes"] > 4 * 11_000_000
        assert row["bound"] == pytest.approx(row["fio"] + 2 * row["prefix_cache_hit"])
        for hit in ("prefix_cache_hit", "memory_hit", "disk_hit"):
            assert 0 < row[hit] < row["cold"]
    for name, ratio in result["ratios"].items():
        low, high = result["ranges"][name]
        assert low <= ratio <= high
    first, second = result["counters"]["first"], result["counters"]["second"]
    # Of each document a memory hit in the one, and a hit in the directory in the other.
    assert first["tokens_loaded"] == first["tokens_loaded_memory"] == 2 * (TOKENS - 1)
    assert second["tokens_loaded"] == 2 * (TOKENS - 1)
    assert second["tokens_loaded_memory"] == 0
    assert list(tmp_path.iterdir()) == []
