"""What may be said again and again is said once a minute."""

import time
from collections.abc import Callable

from vllm.logger import init_logger

logger = init_logger("vllm.lmkv")

INTERVAL_SECONDS = 60.0


class Throttle:
    """Lets one in a minute through."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = float("-inf")

    def passes(self) -> bool:
        now = self._clock()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + INTERVAL_SECONDS
        return True


class ActivityLog:
    """One line about what the connector did, and none while it does nothing. Counts between
    reports. Scheduler thread only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._counts: dict[str, int] = {}

    def count(self, **counts: int) -> None:
        for name, count in counts.items():
            if count:
                self._counts[name] = self._counts.get(name, 0) + count

    def report(self) -> None:
        """Log the counts if a minute has passed since the last line and there are any."""
        if not self._counts or self._clock() - self._since < INTERVAL_SECONDS:
            return
        counts, self._counts = self._counts, {}
        self._since = self._clock()
        logger.info(
            "lmkv: loaded %d tokens (%d failed and were computed); %d chunks stored, "
            "%d not stored (dropped or failed)",
            counts.get("tokens", 0),
            counts.get("tokens_failed", 0),
            counts.get("stored", 0),
            counts.get("unstored", 0),
        )
