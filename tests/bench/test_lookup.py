"""``lmkv bench lookup``: real files, few of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from programs import LMKV
from programs import run as run_program


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run_program(*LMKV, "lookup", *words)


def test_it_measures_every_state_and_leaves_nothing(tmp_path: Path) -> None:
    done = run("--path", tmp_path, "--chunks", "100", "--prefixes", "3", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["chunks"] == 100
    states = ["cold", "known", "absent", "directory"]
    if os.access("/proc/sys/vm/drop_caches", os.W_OK):
        states.append("dropped")
    for name in states:
        row = result[name]
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert 0 < row["call_p50_us"] <= row["p50_us"]
        assert row["keys_per_s"] > 0
    # No system call, and it shows on any machine.
    assert result["known"]["p50_us"] < result["cold"]["p50_us"]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = run("--path", file)
    assert done.returncode == 2
    assert str(file) in done.stderr
