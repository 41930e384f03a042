"""docs/benchmarks.md: made of the results beside it, all of them, and of nothing else."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from programs import BENCHMARKS

ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def measured() -> dict[str, dict[str, object]]:
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


def test_the_charts_were_drawn_from_the_results(measured: dict[str, dict[str, object]]) -> None:
    from charts import drawn_from
    from report import SECTIONS

    drawn = {name: measured[name]["result"] for name, one in SECTIONS.items() if one.chart}
    for name, result in {**drawn, "derived": None}.items():
        text = (ROOT / "docs" / "assets" / "benchmarks" / f"{name}.svg").read_text()
        identifier = f"<dc:identifier>{drawn_from(result)}</dc:identifier>"  # type: ignore[arg-type]
        assert identifier in text, f"{name}.svg is out of date: run benchmarks/report.py"


def test_a_chart_of_other_numbers_is_another(tmp_path: Path) -> None:
    from charts import save, workloads

    one = {"multi_turn": {"speedup": 1.5, "speedup_range": [1.25, 1.75]}}
    other = {"multi_turn": {"speedup": 1.5, "speedup_range": [1.25, 1.875]}}
    for name, result in (("first", one), ("again", one), ("other", other)):
        save(workloads(result), tmp_path / name, result)
    first, again, changed = ((tmp_path / name).read_text() for name in ("first", "again", "other"))
    assert first == again
    identifiers = [re.findall(r"<dc:identifier>(\w+)<", text) for text in (first, changed)]
    assert len(identifiers[0]) == len(identifiers[1]) == 1
    assert identifiers[0] != identifiers[1]


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_a_median_of_few_is_said_to_be_one(
    count: int, measured: dict[str, dict[str, object]]
) -> None:
    from report import page

    peers = copy.deepcopy(measured["peers"])
    peers["result"]["documents"] = peers["result"]["documents"][:count]  # type: ignore[index]
    text = page({"peers": peers})
    assert ("too few to compare" in text) == (count < 5)
    assert (f"Medians of {count} repetitions" in text) == (count > 1)


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
