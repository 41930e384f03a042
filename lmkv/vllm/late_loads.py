"""Loads that are not worth waiting for any more, and how fast the directory is after them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmkv.vllm.metadata import Load

# How long reads of what was given up are looked at, for how fast they are.
AFTER_SECONDS = 10.0

Stats = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Begun:
    load: Load
    at: float
    stats: Stats


class LateLoads:
    """One worker's loads that have a time. ``stats``: the engine's. Worker thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[int, _Begun] = {}
        self._given_up: _Begun | None = None  # the first of those whose reads are looked at
        self._until = 0.0

    def __bool__(self) -> bool:
        return bool(self._begun) or self._given_up is not None

    def begin(self, job: int, load: Load, stats: Stats) -> None:
        """The engine's ``job`` is to be given up after ``load.within``."""
        self._begun[job] = _Begun(load, self._clock(), stats)

    def end(self, job: int) -> None:
        """It has ended."""
        self._begun.pop(job, None)

    def take_late(self, stats: Callable[[], Stats]) -> list[int]:
        """The jobs to be given up now.

        What loads take together counts: they share the directory, and one that waits for others has
        not to do with a slow one.
        """
        now = self._clock()
        over = {
            job: begun
            for job, begun in self._begun.items()
            if begun.load.within is not None and now - begun.at > begun.load.within
        }
        if not over:
            return []
        loaded = stats()["chunks_loaded"]
        late = []
        for job, begun in over.items():
            arrived = (loaded - begun.stats["chunks_loaded"]) / len(begun.load.chunks)
            if now - begun.at > arrived * begun.load.worth:
                late.append(job)
        for job in late:
            begun = self._begun.pop(job)
            if self._given_up is None:
                self._given_up, self._until = begun, now + AFTER_SECONDS
        return late

    def take_read(self, stats: Callable[[], Stats]) -> tuple[int, float, bool]:
        """Bytes that were read, the seconds that tiers were busy for them, and whether most came
        from the remote one, since a load began that was given up: once nothing is being read any
        more. Nothing at any other time.
        """
        before = self._given_up
        if before is None:
            return 0, 0.0, False
        after = stats()
        in_flight = after["load_bytes_in_flight"] + after.get("remote_load_bytes_in_flight", 0)
        if in_flight and self._clock() < self._until:
            return 0, 0.0, False
        self._given_up = None
        busy = after["reading_microseconds"] - before.stats["reading_microseconds"]
        read = after["bytes_loaded"] - before.stats["bytes_loaded"]
        remote = after["bytes_loaded_remote"] - before.stats["bytes_loaded_remote"]
        return read, busy / 1e6, 2 * remote > read
