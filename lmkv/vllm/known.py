"""Chunks that are known to be in the directory, so that they need not be stored."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

# Chunks that are remembered: about 100 bytes each.
KNOWN_CHUNKS = 1 << 17

# How long that is believed: others evict, and a head that went while vLLM's own cache held it is
# to be stored again, or what is stored behind it is of no use.
KNOWN_SECONDS = 60.0


class _Known(NamedTuple):
    until: float  # of the clock; then the directory is to be asked again
    tick: int = 0  # the last in which it was said to be used


class KnownChunks:
    """The newest ``KNOWN_CHUNKS``, by key. Scheduler thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._chunks: OrderedDict[bytes, _Known] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        """Whether it was there within the last minute."""
        known = self._chunks.get(key)
        return known is not None and self._clock() < known.until

    def add(self, keys: Iterable[bytes]) -> None:
        """They are there now."""
        until = self._clock() + KNOWN_SECONDS
        for key in keys:
            known = self._chunks.get(key)
            self._chunks[key] = _Known(until, known.tick if known else 0)
            self._chunks.move_to_end(key)
        while len(self._chunks) > KNOWN_CHUNKS:
            self._chunks.popitem(last=False)

    def discard(self, keys: Iterable[bytes]) -> None:
        """They are not, or no longer, there."""
        for key in keys:
            self._chunks.pop(key, None)

    def clear(self) -> None:
        """Nothing is known to be there."""
        self._chunks.clear()

    def use(self, key: bytes, tick: int) -> bool:
        """It is used in that tick. False if it is remembered, and that it was used then, too."""
        known = self._chunks.get(key)
        if known is None:
            return True
        if known.tick >= tick:
            return False
        self._chunks[key] = known._replace(tick=tick)
        return True
