"""``benchmarks/interference.py``: a real engine decodes while lmkv stores and loads; briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of

WINDOWS, WINDOW_TOKENS = 16, 8


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_stores_and_loads_while_it_decodes_and_leaves_nothing(tmp_path: Path) -> None:
    result = result_of(
        "interference.py", tmp_path, "--windows", str(WINDOWS),
        "--window-tokens", str(WINDOW_TOKENS), "--repetitions", "1",
    )  # fmt: skip
    each = WINDOWS // 4
    for kind in ("nothing", "storing", "cached", "loading"):
        row = result[kind]
        assert row["tokens"] == each * WINDOW_TOKENS
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        # Prompts that are computed take a step or more of the answer's, the others share one.
        alone = row["decode_steps"]["tokens"]
        assert row["tokens"] - 3 * each <= alone <= row["tokens"] - each
    for kind, other in (("storing", "nothing"), ("loading", "cached")):
        row = result[kind]
        assert row["compared_with"] == other
        for label in ("p50", "p99"):
            ratio = row[f"{label}_ms"] / result[other][f"{label}_ms"]
            assert row[f"{label}_ratio"] == pytest.approx(ratio)
            low, high = row[f"{label}_ratio_range"]
            assert low <= high
    chunk = result["about"]["chunk_bytes"]
    assert result["storing"]["bytes_stored"] == each * chunk
    assert result["loading"]["bytes_loaded"] == each * chunk
    counters = result["counters"]
    assert counters["tokens_loaded"] == each * 256
    assert not {"memory_hits", "stores_dropped", "loads_failed"} & counters.keys()
