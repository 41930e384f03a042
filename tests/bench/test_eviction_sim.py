"""benchmarks/eviction_sim.py: what lmkv's evictor keeps, beside other orders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from eviction_sim import (  # noqa: E402
    Request,
    belady,
    distinct,
    drift,
    lmkv,
    lru,
    multi_turn,
    numbered,
    read_trace,
    s3_fifo,
    scan,
    shared_documents,
)

# Of the Mooncake release (FAST '25), where a checkout has it beside it.
TRACE = ROOT.parent / "shared" / "data" / "mooncake_conversation_trace.jsonl"


def requests(*prompts):
    return [Request(10.0 * number, list(ids)) for number, ids in enumerate(prompts)]


def test_orders_reach_what_can_be_counted_by_hand():
    # 0 1 2 | 3 4 | 0 1 2, with room for three blocks
    seen = requests([0, 1, 2], [3, 4], [0, 1, 2])
    assert lru(seen, 3) == pytest.approx(1 / 8)  # 3, 4 and the first prompt's head stay
    assert lmkv(seen, 3, "lru") == pytest.approx(1 / 8)
    assert belady(seen, 3) == pytest.approx(3 / 8)
    for order in (lru, s3_fifo, belady, lmkv):
        assert order(seen, 5) == pytest.approx(3 / 8)


def test_the_evictors_lru_is_lru():
    made = shared_documents(3, documents=60, requests=600)
    seen = [Request(10 * one.seconds, one.ids) for one in made]  # hardly two within a tick
    capacity = distinct(seen) // 10
    assert lmkv(seen, capacity, "lru") == pytest.approx(lru(seen, capacity), rel=0.01)


def test_a_trace_is_numbered_as_it_comes(tmp_path):
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 1500, "hash_ids": [77, 5]}, {"timestamp": 2500, "hash_ids": [77, 9]}]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_trace(trace) == [Request(1.5, [0, 1]), Request(2.5, [0, 2])]
    assert numbered(iter([(0.0, "ab"), (1.0, "ac")])) == [
        Request(0.0, [0, 1]),
        Request(1.0, [0, 2]),
    ]


@pytest.mark.parametrize(
    ("make", "size", "at_least"),
    [
        (multi_turn, 0.02, 0.99),
        (multi_turn, 0.10, 0.99),
        (drift, 0.02, 0.99),
        (shared_documents, 0.02, 1.4),
        (scan, 0.02, 1.4),
        (scan, 0.25, 1.4),
    ],
)
def test_no_workload_is_served_worse_than_by_lru_and_skewed_ones_far_better(make, size, at_least):
    seen = make(1)
    capacity = int(distinct(seen) * size)
    assert lmkv(seen, capacity) >= at_least * lru(seen, capacity)


@pytest.mark.skipif(not TRACE.exists(), reason="Mooncake's trace is not beside this checkout")
@pytest.mark.parametrize(("size", "at_least"), [(0.02, 1.25), (0.05, 1.08), (0.10, 1.04)])
def test_a_real_trace_is_served_better_than_by_lru(size, at_least):
    seen = read_trace(TRACE)
    capacity = int(distinct(seen) * size)
    assert lmkv(seen, capacity) >= at_least * lru(seen, capacity)


def test_it_prints_a_table_and_json(tmp_path, monkeypatch):
    trace = tmp_path / "small.jsonl"
    lines = [{"timestamp": 10 * n, "hash_ids": [n % 7, 100 + n]} for n in range(60)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/eviction_sim.py", trace, "--only-trace", "--json", "-"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (rows,) = json.loads(done.stdout).values()
    assert [row["size"] for row in rows] == [0.02, 0.05, 0.10, 0.25, 0.50]
    assert all(0 <= row[order] <= row["belady"] + 1e-9 for row in rows for order in ("lmkv", "lru"))
    assert "lmkv / LRU" in done.stderr
