"""Writes deploy/grafana-dashboard.json; tests/deploy/test_grafana.py compares them, and checks that
every metric exists. Import the file in Grafana and choose the Prometheus that scrapes the engines.
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "deploy" / "grafana-dashboard.json"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
ENGINES = '{model_name=~"$model",instance=~"$instance"}'
WINDOW = "[$__rate_interval]"
WIDTH, HEIGHT, COLUMNS = 8, 8, 24


def rate(name: str) -> str:
    return f"sum(rate(vllm:lmkv_{name}_total{ENGINES}{WINDOW}))"


def quantile(share: float, metric: str) -> str:
    buckets = f"sum by (le) (rate({metric}_bucket{ENGINES}{WINDOW}))"
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric: str) -> dict[str, str]:
    return {f"p{int(share * 100)}": quantile(share, metric) for share in (0.5, 0.95, 0.99)}


# Title, unit of Grafana's, what the panel is for, and its lines.
PANELS: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "Prompt tokens not computed",
        "short",
        "The gain: tokens a second whose KV was loaded, by where it came from.",
        {
            "host memory": rate("tokens_loaded_memory"),
            "directory": f"{rate('tokens_loaded')} - {rate('tokens_loaded_memory')}",
            "failed, computed": rate("tokens_failed"),
        },
    ),
    (
        "Time to first token",
        "s",
        "vLLM's own: what users feel.",
        quantiles("vllm:time_to_first_token_seconds"),
    ),
    (
        "Inter-token latency",
        "s",
        "vLLM's own: storing and loading must not show here.",
        quantiles("vllm:inter_token_latency_seconds"),
    ),
    (
        "What a load takes",
        "s",
        "A part of the time to first token.",
        quantiles("vllm:lmkv_load_seconds"),
    ),
    (
        "Compute or load",
        "short",
        "Requests a second, by what was decided.",
        {
            what: rate(f"load_decisions_{name}")
            for what, name in (
                ("load", "load"),
                ("load a part", "cut"),
                ("compute", "compute"),
                ("trial", "trial"),
            )
        }
        | {"given up": rate("loads_late")},
    ),
    (
        "Tokens a second",
        "short",
        "Loading pays where its line is above the other.",
        {
            "loading": f"avg(vllm:lmkv_load_tokens_per_second{ENGINES})",
            "computing": f"avg(vllm:lmkv_compute_tokens_per_second{ENGINES})",
        },
    ),
    (
        "Bytes",
        "Bps",
        "To and from the directories.",
        {"stored": rate("bytes_stored"), "loaded": rate("bytes_loaded")},
    ),
    (
        "Rate of the disk",
        "Bps",
        "While it writes or reads.",
        {
            "writing": f"{rate('bytes_stored')} / {rate('writing_seconds')}",
            "reading": f"{rate('bytes_loaded')} / {rate('reading_seconds')}",
        },
    ),
    (
        "Under way",
        "short",
        "Requests that wait for a load, chunks that are being stored.",
        {
            "loads": f"sum(vllm:lmkv_loads_under_way{ENGINES})",
            "stores": f"sum(vllm:lmkv_stores_under_way{ENGINES})",
        },
    ),
    (
        "Stores that came to nothing",
        "short",
        "Chunks a second, by reason. They are misses later on, nothing worse.",
        {
            "no host memory": rate("stores_dropped"),
            "full": rate("stores_dropped_full"),
            "out of service": rate("stores_dropped_out_of_service"),
            "failed": rate("stores_failed"),
            "gather failed": rate("gathers_failed"),
        },
    ),
    (
        "Loads that came to nothing",
        "short",
        "Chunks a second, by reason. All of it was computed.",
        {
            "gone": rate("chunks_missing"),
            "bad": rate("chunks_bad"),
            "timed out": rate("loads_timed_out"),
            "out of service": rate("loads_refused"),
            "not waited for": rate("loads_cancelled"),
            "lookup given up": rate("lookups_given_up"),
        },
    ),
    (
        "Space",
        "bytes",
        "Of each engine's directories; engines that share one show the same.",
        {
            "used": f"max by (instance) (vllm:lmkv_store_bytes_used{ENGINES})",
            "capacity": f"max by (instance) (vllm:lmkv_store_capacity{ENGINES})",
        },
    ),
    (
        "Evictions",
        "short",
        "Chunks a second, by reason.",
        {
            "capacity": rate("chunks_evicted_capacity"),
            "free space floor": rate("chunks_evicted_floor"),
            "disk or quota full": rate("chunks_evicted_full_disk"),
            "age": rate("chunks_evicted_age"),
        },
    ),
    (
        "Out of service",
        "short",
        "Directories that fail or hang. 0 is right.",
        {
            "for loads": f"max by (instance) (vllm:lmkv_loads_out_of_service{ENGINES})",
            "for stores": f"max by (instance) (vllm:lmkv_stores_out_of_service{ENGINES})",
        },
    ),
    (
        "Lookups",
        "s",
        "How long a step waited for one; it never waits longer than a millisecond.",
        quantiles("vllm:lmkv_lookup_seconds"),
    ),
]


def panel(index: int, title: str, unit: str, why: str, lines: dict[str, str]) -> dict[str, Any]:
    row, column = divmod(index, COLUMNS // WIDTH)
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": title,
        "description": why,
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": expr,
                "legendFormat": name,
            }
            for i, (name, expr) in enumerate(lines.items())
        ],
    }


def variable(name: str, label: str, metric: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values({metric}, {'model_name' if name == 'model' else name})",
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def dashboard() -> dict[str, Any]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource"}
    metric = "vllm:lmkv_tokens_loaded_total"
    return {
        "title": "lmkv",
        "uid": "lmkv",
        "tags": ["vllm", "lmkv"],
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [
                {**source, "query": "prometheus"},
                variable("model", "Model", metric),
                variable("instance", "Engine", metric),
            ]
        },
        "panels": [panel(index, *each) for index, each in enumerate(PANELS)],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"wrote {FILE}")
