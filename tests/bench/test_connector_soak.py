"""``benchmarks/connector_soak.py`` for some seconds: real engines, real files, injected faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import result_of


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_random_requests_get_a_plain_engines_answers_and_leave_nothing(tmp_path: Path) -> None:
    """With a remote tier, which has all that happens without one, too."""
    work = tmp_path / "work"
    work.mkdir()
    result = result_of(
        "connector_soak.py", work, "--minutes", "0.3", "--seed", "3",
        "--remote", f"file://{tmp_path}/remote",
    )  # fmt: skip
    assert result["failures"] == []
    for engine in result["engines"]:
        assert engine["phases"] >= 1
        assert engine["seen"]["tokens_checked"] > 500
        assert engine["slabs_in_use"] == [0]
