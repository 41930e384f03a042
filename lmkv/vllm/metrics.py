"""Counters and gauges: from the workers' engines and the scheduler to vLLM's log and /metrics."""

import statistics
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
    PromMetricT,
)

# Counters of the C++ engine, by the name it gives them; summed over the ranks.
ENGINE_COUNTERS = {
    "chunks_stored": "Chunks written to the directory.",
    "bytes_stored": "Bytes written to the directory.",
    "chunks_loaded": "Chunks brought into the KV cache, from host memory or the directory.",
    "bytes_loaded": "Bytes read from the directory and verified.",
    "writing_microseconds": "Time during which at least one chunk was being written.",
    "reading_microseconds": "Time during which at least one chunk was being read.",
    "checksum_microseconds": "Time that threads spent in checksums, summed over them.",
    "memory_hits": "Chunks loaded that were still in host memory.",
    "chunks_awaited": "Of these, chunks that another load, or another engine, was just bringing.",
    "stores_already_present": "Stores that found the chunk in the directory.",
    "stores_dropped": "Stores dropped because no host memory was free.",
    "stores_dropped_full": "Stores dropped because the directory or the disk was full.",
    "stores_dropped_out_of_service": "Stores dropped because their directory was out of service.",
    "stores_failed": "Stores that failed on the disk.",
    "gathers_failed": "Stores that failed while copying from the KV cache.",
    "loads_cancelled": "Chunks that were to be loaded and were not waited for: their requests "
    "ended, or computing was quicker.",
    "loads_failed": "Chunks that were to be loaded and were not, for any other reason.",
    "loads_timed_out": "Of these, chunks of loads that took too long.",
    "loads_refused": "Of these, chunks whose directory was out of service.",
    "chunks_missing": "Of these, chunks that were gone.",
    "chunks_bad": "Of these, chunks whose files were not what was asked for, or damaged.",
    "chunks_bad_removed": "Bad files that were removed.",
    "remote_hits": "Chunks that the remote tier brought.",
    "bytes_loaded_remote": "Of bytes_loaded, bytes that the remote tier brought.",
    "remote_chunks_stored": "Chunks that were new to the remote tier.",
    "remote_bytes_stored": "Bytes that were new to the remote tier.",
    "remote_stores_dropped": "Chunks that did not go to the remote tier: too many were on their "
    "way, or it was out of service or full. They go there when they are used again.",
    "remote_stores_failed": "Chunks that the remote tier did not take.",
    "chunks_promoted": "Chunks of the remote tier that the directory keeps now.",
    "bytes_promoted": "Bytes that these took.",
    "promotions_dropped": "Chunks of the remote tier that the directory does not keep: too many "
    "were on their way, or it was out of service or full.",
    "promotions_failed": "Chunks of the remote tier that the disk refused.",
    "unpinned_slabs": "Chunk buffers that could not be pinned, so that copies to and from a GPU "
    "are slow.",
    "device_lost": "GPUs whose context was lost; their ranks store and load nothing any more.",
    "chunks_evicted": "Chunks removed by this engine to make room.",
    "chunks_evicted_capacity": "Of these, chunks removed because of the capacity.",
    "chunks_evicted_floor": "Of these, chunks removed for the free space floor.",
    "chunks_evicted_age": "Of these, chunks removed because they were not used for max_age.",
    "chunks_evicted_full_disk": "Of these, chunks removed because the disk or a quota was full.",
    "bytes_evicted": "Bytes that chunks_evicted took.",
    "chunks_touched": "Files whose time of last use was renewed.",
    "touches_failed": "Files whose time of last use could not be renewed.",
    "temporaries_removed": "Files of dead writers that were removed.",
    "housekeeping_passes": "Scans of the directory.",
    "housekeeping_failures": "Scans, evictions and looks at the disk's space that failed.",
    "direct_io_fallbacks": "Times that O_DIRECT was refused and the page cache used.",
}

# Counters of the scheduler's side.
SCHEDULER_COUNTERS = {
    "tokens_loaded": "Prompt tokens whose KV was loaded instead of computed.",
    "tokens_loaded_memory": "Of tokens_loaded, those that were still in host memory.",
    "tokens_failed": "Prompt tokens whose KV should have been loaded and was computed.",
    "lookups_given_up": "Chunks taken for absent because the filesystem did not say in time.",
    "load_decisions_load": "Requests that all that was found was loaded for.",
    "load_decisions_cut": "Requests that a part was loaded for, because all of it would have taken "
    "longer.",
    "load_decisions_compute": "Requests that nothing was loaded for, because computing was thought "
    "quicker.",
    "load_decisions_trial": "Of load_decisions_load, those to find out what loads take.",
    "loads_late": "Loads that were given up because they took longer than they were worth.",
    "expected_load_microseconds": "What the loads of the requests that were decided on were "
    "expected to take.",
    "expected_compute_microseconds": "What computing the same was expected to take.",
    "requests_misunderstood": "Requests that passed by because their kv_transfer_params were not "
    "understood.",
}

COUNTERS = ENGINE_COUNTERS | SCHEDULER_COUNTERS

# Gauges of the C++ engine: the last value that any rank said, since all see the same directory.
ENGINE_GAUGES = {
    "store_bytes_used": "Bytes that all chunks in all directories take, whoever wrote them.",
    "store_capacity": "The capacity that is set, summed over the directories; 0 is none.",
}

# Gauges of the scheduler's side: it knows what each rank says.
SCHEDULER_GAUGES = {
    "loads_out_of_service": "Directories that a rank does not load from, because they fail.",
    "stores_out_of_service": "Directories that a rank does not store to, because they fail.",
    "remote_lookups_out_of_service": "1 while nothing is found in the remote tier, because it is "
    "not reached, fails or hangs.",
    "loads_under_way": "Requests that wait for their load.",
    "stores_under_way": "Chunks on their way to the directory.",
    "compute_tokens_per_second": "How fast prompts were computed lately.",
    "load_tokens_per_second": "How fast tokens were loaded lately.",
    "remote_load_tokens_per_second": "How fast tokens were loaded from the remote tier lately.",
}

GAUGES = ENGINE_GAUGES | SCHEDULER_GAUGES

# Histograms of the scheduler's side, in seconds.
HISTOGRAMS = {
    "load_seconds": "What a request's load took, on the slowest rank.",
    "store_seconds": "What a chunk took from the step that computed it to its file.",
    "lookup_seconds": "How long the scheduler waited for a lookup of one request.",
}

# From what a known lookup takes to what a load may take.
_BUCKETS = (
    *(0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)

_FROM_ENGINE = ENGINE_COUNTERS.keys() | ENGINE_GAUGES.keys()

_MICRO = "_microseconds"


def prometheus_name(name: str) -> str:
    """What is called so in /metrics, where times are in seconds."""
    if name in GAUGES or name in HISTOGRAMS:
        return f"vllm:lmkv_{name}"
    if name.endswith(_MICRO):
        name = name.removesuffix(_MICRO) + "_seconds"
    return f"vllm:lmkv_{name}_total"


class LMKVStats(KVConnectorStats):
    """Since the last report: ``data`` maps the names of counters to their increments, of gauges to
    their values, of histograms to lists of what was observed.
    """

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> "LMKVStats":
        for name, value in other.data.items():
            if name in GAUGES or name not in self.data:
                self.data[name] = list(value) if name in HISTOGRAMS else value
            else:
                self.data[name] += value
        return self

    def reduce(self) -> dict[str, int | float]:
        """The interval's increments and means, for vLLM's periodic log line."""
        reduced: dict[str, int | float] = {}
        for name, value in self.data.items():
            if name in HISTOGRAMS:
                reduced[f"{name}_mean"] = round(statistics.fmean(value), 6)
            elif value:
                reduced[name] = value
        return reduced

    def is_empty(self) -> bool:
        return not self.data  # a gauge that fell to 0 is news


class Deltas:
    """Increments of cumulative counters between calls."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def take(self, totals: dict[str, int]) -> LMKVStats | None:
        """Increments since the last call as stats, gauges that changed as they are; None when
        there is neither.
        """
        data = {
            name: total if name in GAUGES else total - self._last.get(name, 0)
            for name, total in totals.items()
            if name in _FROM_ENGINE and total != self._last.get(name, 0)
        }
        self._last = totals
        return LMKVStats(data=data) if data else None


class LMKVPromMetrics(KVConnectorPromMetrics):
    """Every counter, gauge and histogram under its ``prometheus_name``, by engine."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[PromMetric], type[PromMetricT]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._metrics: dict[str, dict[int, Any]] = {}
        for kind, documented, more in (
            (self._counter_cls, COUNTERS, {}),
            (self._gauge_cls, GAUGES, {}),
            (self._histogram_cls, HISTOGRAMS, {"buckets": _BUCKETS}),
        ):
            for name, documentation in documented.items():
                metric = kind(
                    name=prometheus_name(name),
                    documentation=documentation,
                    labelnames=labelnames,
                    **more,
                )
                self._metrics[name] = {
                    engine: metric.labels(*values)
                    for engine, values in per_engine_labelvalues.items()
                }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            metric = self._metrics[name][engine_idx]
            if name in GAUGES:
                metric.set(value)
            elif name in HISTOGRAMS:
                for seconds in value:
                    metric.observe(seconds)
            else:
                metric.inc(value * (1e-6 if name.endswith(_MICRO) else 1))
