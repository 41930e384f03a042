"""``benchmarks/peers.py``: lmkv and vLLM's own ExampleConnector, real engines; briefly."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_system_stores_and_loads_the_same_document(tmp_path: Path) -> None:
    result = result_of(
        "peers.py", tmp_path, "--documents", "1", "--tokens", "900",
        "--peers", "example", "offloading",
    )  # fmt: skip
    assert result.keys() == {"plain", "systems", "documents", "repetitions"}
    assert list(result["systems"]) == ["lmkv", "example", "offloading"]
    for name in ("lmkv", "example"):
        one = result["systems"][name]
        # 28 blocks of 32 tokens, of which either leaves out what it must.
        assert 27 * 1_474_560 < one["bytes"] < 30 * 1_474_560
        assert one["same_answers"] == 1
        assert one["hit_ms"] > 0
    assert result["systems"]["lmkv"]["hit_ratio"] == 1
    # vLLM's own offloading has no worker for the CPU: a reason, and no number.
    other = result["systems"]["offloading"]
    assert "CUDA" in other["failed"]
    assert "hit_ms" not in other
