"""A clean-up by hand of what is under a directory, as ``lmkv gc`` does it, without an engine.

Nothing here imports torch. Everything blocks on the disk; a directory may be in use meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lmkv._C import Removal, TreeFile, remove_chunk, scan_tree
from lmkv.tree import NEVER, filesystem_now, is_abandoned, is_of_the_future, sweep_before

# As engines do: csrc/store/housekeeper.hpp, HousekeepingOptions.
SPARED_SECONDS = 5.0
# More than any time since the epoch.
LONG_BEFORE_NS = 4 * 10**18
# Chunks that a clean-up keeps in memory at once (it scans again for more): below 200 MB.
CANDIDATES = 200_000


@dataclass(slots=True)
class Cleaned:
    """What a clean-up removed, or would have. ``failed``: what could not be removed, and why."""

    chunks: int = 0
    bytes: int = 0
    abandoned: int = 0
    left_bytes: int = 0
    failed: list[str] = field(default_factory=list)
    complete: bool = True


def clean(
    root: str,
    *,
    to_bytes: int | None = None,
    older_than: float | None = None,
    namespace: str | None = None,
    dry_run: bool = False,
) -> Cleaned:
    """Remove chunks that were not used for the longest time, and what dead writers left anywhere.

    Of ``namespace``, or of all: first those that were last used more than ``older_than`` seconds
    ago, then as many as it takes until all that is under ``root``, other namespaces included, has
    ``to_bytes`` at most; with neither, all of them. What was used in the last seconds stays.
    Engines may run meanwhile: they miss what is gone. Raises OSError if ``root`` cannot be read.
    """
    os.scandir(root).close()
    everything = to_bytes is None and older_than is None
    cleaner = _Cleaner(root, namespace, float("-inf") if everything else older_than, dry_run)
    cleaner.pass_by_age()
    while to_bytes is not None and cleaner.left_bytes > to_bytes:
        if not cleaner.pass_by_order(to_bytes):
            break
    cleaner.found.left_bytes = cleaner.left_bytes
    return cleaner.found


# Chunks in the order in which they go: by last use, then by name.
_Order = tuple[int, str, int, bytes]


class _Cleaner:
    def __init__(
        self, root: str, namespace: str | None, older_than: float | None, dry_run: bool
    ) -> None:
        self.found = Cleaned()
        self._root, self._namespace, self._dry_run = root, namespace, dry_run
        self._older_than, self._now = older_than, time.time()
        self._after: _Order = (-(1 << 63), "", 0, b"")  # up to here all were tried
        self._seen_bytes = self._gone_bytes = 0
        self._clock_ahead = time.time() - filesystem_now(root)

    @property
    def left_bytes(self) -> int:
        """Of everything under the root, as the last scan saw it, less what has gone since."""
        return self._seen_bytes - self._gone_bytes

    def pass_by_age(self) -> None:
        """One scan: removes what is old."""

        def visit(file: TreeFile) -> None:
            if is_abandoned(file, self._now) and (file.removed or self._dry_run):
                self.found.abandoned += 1
                self._gone_bytes += file.bytes
            elif self._is_old(file) and self._may_go(file):
                self._remove(file)

        self._scan(visit, NEVER if self._dry_run else sweep_before(self._now))

    def pass_by_order(self, to_bytes: int) -> bool:
        """One scan for the next candidates, which then go until there is no more than that.

        Whether there may be more.
        """
        heap: list[tuple[_Newest, int, TreeFile]] = []
        number = itertools.count()

        def visit(file: TreeFile) -> None:
            order = (self._last_use_ns(file), file.namespace, file.rank, file.key)
            # What is old had its turn, and if it is there still, it stays.
            if order <= self._after or self._is_old(file) or not self._may_go(file):
                return
            push = heapq.heappush if len(heap) < CANDIDATES else heapq.heappushpop
            push(heap, (_Newest(order), next(number), file))

        self._scan(visit, NEVER)
        for newest, _, file in sorted(heap, reverse=True):
            if self.left_bytes <= to_bytes:
                return False
            if newest.order == self._after:  # a directory that changes may show a name twice
                continue
            self._after = newest.order
            self._remove(file)
        return len(heap) == CANDIDATES

    def _scan(self, visit: Callable[[TreeFile], object], sweep_before_ns: int) -> None:
        self._seen_bytes = 0
        if not self._dry_run:  # then it is there still
            self._gone_bytes = 0

        def count(file: TreeFile) -> None:
            self._seen_bytes += file.bytes
            visit(file)

        if not scan_tree(self._root, count, sweep_before_ns):
            self.found.complete = False

    def _is_old(self, file: TreeFile) -> bool:
        if self._older_than is None:
            return False
        return self._now - self._last_use_ns(file) / 1e9 >= self._older_than

    def _last_use_ns(self, file: TreeFile) -> int:
        """What a wrong clock stamped goes first, as in engines (csrc/store/housekeeper.cpp)."""
        of_the_future = is_of_the_future(file.modified_ns, self._now)
        return file.modified_ns - (LONG_BEFORE_NS if of_the_future else 0)

    def _may_go(self, file: TreeFile) -> bool:
        if not file.key or self._namespace not in {None, file.namespace}:
            return False
        now = time.time() - self._clock_ahead
        settled = now - file.changed_ns / 1e9 >= SPARED_SECONDS
        return settled or is_of_the_future(file.changed_ns, now)

    def _remove(self, file: TreeFile) -> None:
        found = self.found
        try:
            removal = Removal.REMOVED if self._dry_run else remove_chunk(self._root, file)
        except OSError as error:
            found.failed.append(str(error))
            return
        if removal is Removal.KEPT:
            return
        self._gone_bytes += file.bytes
        if removal is Removal.REMOVED:  # and not by somebody else
            found.chunks += 1
            found.bytes += file.bytes


@dataclass(frozen=True, slots=True)
class _Newest:
    """Sorts the most recently used first."""

    order: _Order

    def __lt__(self, other: _Newest) -> bool:
        return other.order < self.order
