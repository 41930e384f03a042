"""What a real engine in this process has counted of lmkv."""

from __future__ import annotations

from typing import Any


def counters_of(engine: Any) -> dict[str, float]:
    """The counters and gauges of a vLLM ``LLMEngine`` that are lmkv's, since its start."""
    found: dict[str, float] = {}
    for metric in engine.get_metrics():
        name = metric.name.removeprefix("vllm:")
        if name.startswith("lmkv_") and hasattr(metric, "value"):  # no histogram
            name = name.removeprefix("lmkv_")
            found[name] = found.get(name, 0) + metric.value
    return found
