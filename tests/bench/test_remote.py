"""``lmkv bench remote``, with a real S3 server, briefly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import result_of

sys.path.insert(0, str(Path(__file__).parents[1] / "remote"))
from remote_servers import ACCESS_KEY, SECRET_KEY, s3_options, seaweedfs

PROGRAM = "from lmkv.cli import app; app()"


def run(url: str, *words: str, options: dict[str, str]) -> subprocess.CompletedProcess[str]:
    given = [word for pair in options.items() for word in ("--option", "=".join(pair))]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "bench", "remote", url, *given, *words, "--json", "-"],
        env=os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_it_measures_both_ways_and_leaves_nothing(tmp_path: Path) -> None:
    with seaweedfs(tmp_path) as port:
        brief = ("--rounds", "2", "--chunks", "4", "--chunk-mib", "2", "--singles", "5")
        done = run("s3://bucket/bench", *brief, options=s3_options(port))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        for way in ("put", "get"):
            low, high = result[way]["ratio_range"]
            assert 0 < low <= result[way]["ratio"] <= high
            assert result[way]["gbps"] > 0
        assert result["latency"]["get"]["p50_ms"] <= result["latency"]["get"]["p99_ms"]
        assert result["chunk_bytes"] == (2 << 20) + 4096

        import obstore
        from obstore.store import S3Store

        store = S3Store(
            "bucket", config={"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY},
            endpoint=f"http://127.0.0.1:{port}", region="us-east-1",
            client_options={"allow_http": True},
        )  # fmt: skip
        assert [one["path"] for batch in obstore.list(store) for one in batch] == []
    assert not list(Path("/dev/shm").glob("lmkv-bench-*"))


@pytest.mark.slow
def test_over_a_link_no_more_comes_than_it_carries(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["ip", "netns"], check=False).returncode:
        pytest.skip("may not make networks")
    result = result_of(
        "remote_link.py", tmp_path, "--engine", "mooncake", "--rate", "1gbit",
        "--rounds", "2", "--chunks", "4", "--chunk-mib", "4", "--singles", "3",
    )  # fmt: skip
    # What the token buckets let through at once counts, too.
    most = 0.125 * 1.5
    for way in ("put", "get"):
        assert 0 < result[way]["gbps"] < most
        assert 0 < result[way]["client_gbps"] < most


def test_what_cannot_be_reached_is_said() -> None:
    done = run("mooncake://127.0.0.1:1", options={"colour": "red"})
    assert done.returncode == 2
    assert "remote_options: colour" in done.stderr
    done = run("file:///tmp", options={})
    assert done.returncode == 2
    assert "a directory is measured by `bench io`" in done.stderr
