"""What the lmkv engines have done so far, summed over them, from their metrics."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lmkv.demo.metrics import EngineMetrics


@dataclass(frozen=True)
class Counters:
    """Sums over the engines since the page was started, an engine's earlier lives included."""

    chunks_stored: float = 0.0
    bytes_stored: float = 0.0
    writing_seconds: float = 0.0
    chunks_loaded: float = 0.0
    bytes_loaded: float = 0.0
    reading_seconds: float = 0.0
    tokens_loaded: float = 0.0
    stores_dropped: float = 0.0
    stores_failed: float = 0.0
    loads_failed: float = 0.0


@dataclass(frozen=True)
class Activity:
    """`totals`, and bytes per second of the last writing and reading that was seen; 0.0: none."""

    totals: Counters = Counters()
    write_rate: float = 0.0
    read_rate: float = 0.0


_NAMES = [field.name for field in fields(Counters)]


class CounterLog:
    """Adds up readings of several engines. One thread at a time.

    Without `from_zero` an engine's first reading is its past, which is not counted.
    """

    def __init__(self, *, from_zero: bool = True) -> None:
        self._from_zero = from_zero
        self._last: dict[str, Counters] = {}
        self.activity = Activity()

    def add(self, readings: dict[str, EngineMetrics]) -> Activity:
        """Takes in the metrics of the engines that answered, by name."""
        gained = dict.fromkeys(_NAMES, 0.0)
        for engine, metrics in readings.items():
            now = Counters(**{name: metrics.value(f"vllm:lmkv_{name}_total") for name in _NAMES})
            before = self._last.get(engine, Counters() if self._from_zero else now)
            if any(getattr(now, name) < getattr(before, name) for name in _NAMES):
                before = Counters()  # the engine was started again
            for name in _NAMES:
                gained[name] += getattr(now, name) - getattr(before, name)
            self._last[engine] = now
        old = self.activity
        totals = Counters(**{name: getattr(old.totals, name) + gained[name] for name in _NAMES})
        self.activity = Activity(
            totals,
            _rate(gained["bytes_stored"], gained["writing_seconds"]) or old.write_rate,
            _rate(gained["bytes_loaded"], gained["reading_seconds"]) or old.read_rate,
        )
        return self.activity


def _rate(size: float, seconds: float) -> float:
    return size / seconds if seconds > 0 else 0.0
