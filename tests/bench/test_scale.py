"""benchmarks/scale.py: counting, evicting and looking up in a directory of many chunks."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_counts_evicts_and_looks_up_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/scale.py", "--path", tmp_path, "--files", "3000",
         "--repetitions", "2"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["files"] == 3000
    assert result["evicted"] == 150  # the second time, too: the first ones were made good
    assert result["repetitions"] == 2
    assert result["scans"] >= 2  # one counts, one finds what goes
    assert result["made_s"] > 0
    for name in ("count_warm_s", "evict_s", "lookup_s"):
        low, high = result[f"{name}_range"]
        assert 0 < low <= result[name] <= high
    assert not list(tmp_path.iterdir())
