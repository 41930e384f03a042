"""``benchmarks/gate.py``: real runs, bounds that hold, that do not, and that make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import BENCHMARKS, run

LOOKUP = ["--chunks", "50", "--prefixes", "2"]


def gate(tmp_path: Path, bounds: dict[str, Any], words: list[str] = LOOKUP) -> Any:
    file = tmp_path / "gate.json"
    said = {"runs": 2, "experiments": {"lookup": words}, "bounds": {"lookup": bounds}}
    file.write_text(json.dumps(said))
    where = ["--path", tmp_path / "disk", "--results", tmp_path / "results"]
    return run(BENCHMARKS / "gate.py", "--gate", file, *where)


def test_bounds_that_hold_are_shown_with_what_was_found(tmp_path: Path) -> None:
    bounds = {
        "known.p50_us": {"at_least": 0, "target": 1},
        "cold.keys_per_s": {"at_most": 1e12, "target": 1},
    }
    done = gate(tmp_path, bounds)
    assert done.returncode == 0, done.stderr
    for number in ("1", "2"):
        result = json.loads((tmp_path / "results" / number / "lookup.json").read_text())
        assert f"{result['result']['known']['p50_us']:.3g}" in done.stdout
    assert "at least 0" in done.stdout


@pytest.mark.parametrize(
    ("bound", "words", "said"),
    [
        ({"at_most": 0.001, "target": 1}, LOOKUP, "FAILED"),
        ({"at_least": 1e12, "target": 1}, LOOKUP, "FAILED"),
        ({"at_most": 1e12, "target": 1}, ["--no-such-option"], "NOT MEASURED"),
    ],
)
def test_what_is_out_of_bounds_or_not_measured_fails(
    tmp_path: Path, bound: dict[str, float], words: list[str], said: str
) -> None:
    done = gate(tmp_path, {"known.p50_us": bound}, words)
    assert done.returncode == 1, done.stderr
    assert said in done.stdout


def test_a_bound_that_is_none_is_no_gate(tmp_path: Path) -> None:
    done = gate(tmp_path, {"known.p50_us": {"at_mots": 1, "target": 1}})
    assert done.returncode == 2
    assert "known.p50_us has not one bound and a target" in done.stderr


def test_every_bound_of_the_gate_is_of_something_that_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gate import bounds_of, experiments_of

    own = json.loads((BENCHMARKS / "gate.json").read_text())
    names = [experiment.name for experiment in experiments_of(own)]
    bounds = list(bounds_of(own))
    assert {bound.experiment for bound in bounds} == set(names)
    for bound in bounds:
        assert bound.holds(bound.target), bound  # it asks for no more than is aimed at
