"""benchmarks/arena_storm.py for a quarter of a minute."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of


@pytest.mark.timeout(240)
def test_engines_that_are_killed_leave_a_whole_arena(tmp_path: Path) -> None:
    result = result_of("arena_storm.py", tmp_path, "--minutes", "0.25", "--settle", "3")
    assert result["failures"] == []
    # It was no idle run.
    assert result["killed"] > 10
    assert result["stores"] > 1000
    assert result["from_memory"] > 1000
    assert result["most_orphans"] > 0
    assert result["in_memory_at_the_end"] > result["slots"] // 4
