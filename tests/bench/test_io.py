"""``lmkv bench io``: real files, real fio, small."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from programs import LMKV
from programs import run as run_program


def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_program(*LMKV, "io", *words, **variables)


def test_it_measures_both_ways_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(
        "--path", tmp_path, "--chunk-mib", "1", "--chunk-mib", "6", "--gigabytes", "0.03",
        "--rounds", "2", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["by_chunk_mib"]) == {"1", "6"}
    for row in result["by_chunk_mib"].values():
        assert row["cpu_s_per_gb"] > 0
        for way in ("store", "load"):
            low, high = row[way]["gbps_range"]
            assert 0 < low <= row[way]["gbps"] <= high
            assert row[way]["fio_gbps"] > 0
            assert row[way]["ratio"] > 0
            assert row[way]["failed"] == 0
    assert "injected" not in result
    # The headline is that of the larger chunks.
    assert result["store"] == result["by_chunk_mib"]["6"]["store"]
    assert list(tmp_path.iterdir()) == []


def test_with_faults_failures_are_counted_and_do_not_end_it(tmp_path: Path) -> None:
    spec = "write.eio:0.2,read.hang:0.1,delay:1ms:0.1,read.corrupt:0.2"
    done = run(
        "--path", tmp_path, "--chunk-mib", "1", "--gigabytes", "0.03", "--rounds", "2",
        "--fault", spec, "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    row = result["by_chunk_mib"]["1"]
    assert result["fault"] == spec
    assert result["injected"]["write.eio"] >= row["store"]["failed"] > 0
    # What was not stored cannot be loaded.
    assert row["load"]["failed"] > row["store"]["failed"]
    assert result["failed"] == {way: row[way]["failed"] for way in ("store", "load")}
    assert row["store"]["gbps"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    done = run("--path", tmp_path, "--fault", "write.enospace")
    assert done.returncode == 2
    assert "the nearest is enospc" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_fio_it_says_what_to_install(tmp_path: Path) -> None:
    done = run("--path", tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "install the package fio" in done.stderr
