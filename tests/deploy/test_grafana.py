"""The Grafana dashboard: made by its script, and of metrics that there are."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "grafana-dashboard.json"


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "grafana_dashboard.py"
    spec = importlib.util.spec_from_file_location("grafana_dashboard", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def expressions():
    panels = json.loads(FILE.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def names_in(expressions):
    return {name for expr in expressions for name in re.findall(r"vllm:\w+", expr)}


def test_it_is_what_its_script_makes(script):
    assert FILE.read_text(encoding="utf-8") == script.text()


def test_every_metric_of_lmkv_exists_and_is_of_its_kind(expressions):
    metrics = pytest.importorskip("lmkv.vllm.metrics", reason="vLLM is not installed")
    ours = {name for name in names_in(expressions) if name.startswith("vllm:lmkv_")}
    assert len(ours) > 30
    known = {metrics.prometheus_name(name) for name in metrics.COUNTERS | metrics.GAUGES}
    known |= {metrics.prometheus_name(name) + "_bucket" for name in metrics.HISTOGRAMS}
    assert ours <= known, ours - known
    for expr in expressions:
        rated = set(re.findall(r"rate\((vllm:\w+)", expr))
        assert {name for name in names_in([expr]) if name.endswith(("_total", "_bucket"))} == rated


def test_every_metric_of_vllm_exists(expressions):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.v1.metrics import loggers

    source = Path(loggers.__file__).read_text(encoding="utf-8")
    theirs = {name for name in names_in(expressions) if not name.startswith("vllm:lmkv_")}
    assert theirs
    for name in theirs:
        assert f'"{name.removesuffix("_bucket")}"' in source


def test_every_reason_of_a_drop_a_failure_and_an_eviction_is_shown(expressions):
    metrics = pytest.importorskip("lmkv.vllm.metrics", reason="vLLM is not installed")
    of_a_reason = re.compile(
        r"stores_(dropped|failed)|loads_(timed|refused|cancelled|late)|chunks_(missing|bad$|evicted_)"
    )
    wanted = {metrics.prometheus_name(n) for n in metrics.COUNTERS if of_a_reason.match(n)}
    assert len(wanted) > 10
    assert wanted <= names_in(expressions)


def test_panels_lie_beside_each_other():
    panels = json.loads(FILE.read_text(encoding="utf-8"))["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels)
