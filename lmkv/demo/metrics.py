"""Reads an engine's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping

from lmkv.demo import http

_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
_WANTED = (_BY_SOURCE, "vllm:lmkv_")


class EngineMetrics:
    """One reading of `/metrics`: the sum of each sample name over its label sets."""

    def __init__(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """The sum of the samples of that name (and those labels); 0.0 when there is none."""
        wanted = (labels or {}).items()
        return sum(s.value for s in self.samples if s.name == name and wanted <= s.labels.items())

    @property
    def tokens_loaded(self) -> int:
        """Prompt tokens whose KV came through a connector since the engine started."""
        return int(self.value(_BY_SOURCE, {"source": "external_kv_transfer"}))

    @property
    def tokens_kept(self) -> int:
        """Prompt tokens whose KV the engine still held itself since it started."""
        return int(self.value(_BY_SOURCE, {"source": "local_cache_hit"}))

    @property
    def reading_s(self) -> float:
        """Seconds during which lmkv was reading chunks since the engine started."""
        return self.value("vllm:lmkv_reading_seconds_total")


def read(base_url: str, timeout_s: float = 10.0) -> EngineMetrics:
    """Asks the engine for its metrics; raises `httpx.HTTPError` when it does not answer."""
    response = http.client().get(f"{base_url}/metrics", timeout=timeout_s)
    response.raise_for_status()
    # vLLM has thousands of samples, and the parser is slow: only those that are looked at.
    wanted = (line for line in response.text.splitlines() if line.startswith(_WANTED))
    return EngineMetrics("\n".join(wanted))
