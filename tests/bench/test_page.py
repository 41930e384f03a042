"""docs/benchmarks.md: made of the results beside it, all of them, and of nothing else."""

from __future__ import annotations

import json
import re

import pytest
from programs import BENCHMARKS

ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from report import read

    return read(RESULTS)


def test_the_page_is_what_report_py_makes_of_the_results(
    measured: dict[str, dict[str, object]],
) -> None:
    from report import page

    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert text == page(measured)
    for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (ROOT / "docs" / picture).read_text().rstrip().endswith("</svg>")


def test_every_experiment_was_measured_and_none_failed(
    measured: dict[str, dict[str, object]],
) -> None:
    from experiments import EXPERIMENTS

    assert list(measured) == [experiment.name for experiment in EXPERIMENTS]
    assert all("result" in one for one in measured.values())


def test_a_result_is_of_a_commit_and_names_no_place_of_one_machine(
    measured: dict[str, dict[str, object]],
) -> None:
    for name, one in measured.items():
        commit = one["versions"]["commit"]  # type: ignore[index]
        assert re.fullmatch("[0-9a-f]{12}", commit), name
        assert not re.search(r'"[^"]*/(tmp|root|home|work)/', json.dumps(one)), name


def test_the_gate_asks_for_what_the_results_have(
    measured: dict[str, dict[str, object]],
) -> None:
    from gate import bounds_of, value_in

    for bound in bounds_of(json.loads((BENCHMARKS / "gate.json").read_text())):
        assert value_in(measured[bound.experiment]["result"], bound.value) > 0  # type: ignore[arg-type]
