"""What the scheduler's side counts between two reports."""

from lmkv.vllm.metrics import LMKVStats


class Meter:
    """Counters, gauges and what histograms observe (``lmkv.vllm.metrics``). One thread."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {}
        self._gauges: dict[str, int] = {}  # as last said

    def count(self, name: str, count: int = 1) -> None:
        """The counter of that name grew."""
        if count:
            self._counts[name] = self._counts.get(name, 0) + count

    def observe(self, name: str, *seconds: float) -> None:
        """Of the histogram of that name."""
        if seconds:
            self._seconds.setdefault(name, []).extend(seconds)

    def gauge(self, name: str, value: int) -> None:
        """The gauge of that name: reported if it has changed. It begins at 0."""
        if value != self._gauges.get(name, 0):
            self._gauges[name] = self._counts[name] = value

    def take(self) -> LMKVStats | None:
        """All of it since the last call; None if there was nothing."""
        data: dict[str, int | list[float]] = {**self._counts, **self._seconds}
        self._counts, self._seconds = {}, {}
        return LMKVStats(data=data) if data else None
