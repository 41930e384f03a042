"""A tier's counters and gauges: those of the connector, by vLLM's way for offloading tiers."""

from collections.abc import Mapping

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)

from lmkv.vllm.metrics import (
    ENGINE_COUNTERS,
    ENGINE_GAUGES,
    SCHEDULER_COUNTERS,
    SCHEDULER_GAUGES,
    prometheus_name,
)

LABELS = ("tier",)

TIER_COUNTERS = ENGINE_COUNTERS | {name: SCHEDULER_COUNTERS[name] for name in ("lookups_given_up",)}
TIER_GAUGES = ENGINE_GAUGES | {
    name: SCHEDULER_GAUGES[name] for name in ("loads_out_of_service", "stores_out_of_service")
}

_MICRO = "_microseconds"


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Every metric of a tier, by its name in /metrics."""
    found: dict[str, OffloadingMetricMetadata] = {}
    for name, documentation in TIER_COUNTERS.items():
        found[prometheus_name(name)] = OffloadingCounterMetadata(documentation, LABELS)
    for name, documentation in TIER_GAUGES.items():
        found[prometheus_name(name)] = OffloadingGaugeMetadata(documentation, LABELS)
    return found


class TierDeltas:
    """Increments of cumulative counters between calls, and gauges that changed."""

    def __init__(self, label: str) -> None:
        self._label = (label,)
        self._last: Mapping[str, int] = {}

    def take(self, totals: Mapping[str, int]) -> OffloadingConnectorStats | None:
        """Since the last call; None when nothing has moved."""
        stats = OffloadingConnectorStats()
        for name in TIER_GAUGES:
            if totals[name] != self._last.get(name, 0):
                stats.set_gauge(prometheus_name(name), totals[name], self._label)
        for name in TIER_COUNTERS:
            if more := totals[name] - self._last.get(name, 0):
                by: int | float = more * 1e-6 if name.endswith(_MICRO) else more
                stats.increase_counter(prometheus_name(name), by, self._label)
        self._last = totals
        return None if stats.is_empty() else stats
