"""``benchmarks/break_even.py``: real engines, two lengths; and what is made of given numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import BENCHMARKS, result_of


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_longer_prompt_is_loaded_sooner_than_computed(tmp_path: Path) -> None:
    result = result_of("break_even.py", tmp_path, "--documents", "1", "--tokens", "96", "1024")
    short, long = result["by_tokens"]
    assert (short["tokens"], long["tokens"]) == (96, 1024)
    # All but the last block: tails are stored, too.
    assert short["cached"] == 64
    assert long["cached"] == 1024 - 32
    assert long["disk_hit_ms"] < long["cold_ms"]
    assert result["break_even_tokens"] == (96 if short["disk_hit_ms"] < short["cold_ms"] else 1024)


def test_only_what_no_longer_prompt_contradicts_is_called_the_break_even(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from break_even import summary

    rows = [
        {"tokens": tokens, "cached": 0, "cold": 1.0, "disk_hit": hit}
        for tokens, hits in ((100, (0.5,)), (200, (1.5, 0.4, 1.2)), (300, (0.9,)), (400, (0.1,)))
        for hit in hits
    ]
    result = summary(rows)
    assert result["break_even_tokens"] == 300
    assert result["by_tokens"][1]["disk_hit_ms"] == 1200
    assert result["by_tokens"][1]["disk_hit_range_ms"] == [400, 1500]
    assert summary(rows[:2])["break_even_tokens"] is None
