"""What is under a directory: all namespaces, whoever wrote them, without an engine.

Nothing here imports torch. Everything blocks on the disk; a directory may be in use meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkv._C import Finding, Inspection, Removal, TreeFile, inspect_chunk, remove_chunk, scan_tree
from lmkv.errors import ConfigError
from lmkv.namespace import entered, load_meta

PAGE_BYTES = 4096  # of the header, and of what a file is padded to
# As engines do: csrc/store/housekeeper.hpp, HousekeepingOptions.
ABANDONED_SECONDS = 3600.0
SPARED_SECONDS = 5.0
# And csrc/common/clocks.hpp.
CLOCKS_DIFFER_SECONDS = 3600.0
LONG_BEFORE_NS = 4 * 10**18
# Chunks that a clean-up keeps in memory at once (it scans again for more): below 200 MB.
CANDIDATES = 200_000
_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(slots=True)
class NamespaceSummary:
    """Chunks of one namespace. Times are seconds since the epoch, of the last use."""

    name: str
    meta: dict[str, Any]
    ranks: set[int] = field(default_factory=set)
    chunks: int = 0
    bytes: int = 0
    tokens: int = 0
    oldest: float = 0.0
    newest: float = 0.0

    @property
    def model(self) -> str:
        """As its engines were given it; "" if ``meta.json`` does not say."""
        said = self.meta.get("about", {}).get("model") or self.meta.get("facts", {}).get("model")
        return str(said or "")

    def fact(self, name: str) -> str:
        """One of the things that make the namespace; "" if ``meta.json`` does not say."""
        return str(self.meta.get("facts", {}).get(name, ""))


@dataclass(slots=True)
class Summary:
    """All of a directory. ``complete`` is false if something could not be read."""

    root: str
    namespaces: list[NamespaceSummary] = field(default_factory=list)
    being_written: int = 0
    abandoned: int = 0
    other_bytes: int = 0
    complete: bool = True

    @property
    def bytes(self) -> int:
        """On the disk, with what is being written and what was left half written."""
        return self.other_bytes + sum(one.bytes for one in self.namespaces)


def is_abandoned(file: TreeFile, now: float) -> bool:
    """Whether nobody has written for so long to a file that is no chunk that its writer is dead."""
    if file.key:
        return False
    if not _is_of_the_future(file.modified_ns, now):
        return now - file.modified_ns / 1e9 > ABANDONED_SECONDS
    changed = now - file.changed_ns / 1e9  # who writes sets both times
    return changed > ABANDONED_SECONDS or _is_of_the_future(file.changed_ns, now)


def _is_of_the_future(time_ns: int, now: float) -> bool:
    """Whether a wrong clock said so."""
    return time_ns / 1e9 > now + CLOCKS_DIFFER_SECONDS


def check_namespace(root: str, name: str) -> str:
    """``name`` if it is a namespace under ``root``. Raises ConfigError if not."""
    if not _NAME.fullmatch(name) or not (Path(root) / "v1" / name).is_dir():
        raise ConfigError(f"there is no namespace {name!r} (16 hex digits): see lmkv stats")
    return name


def namespaces(root: str) -> list[str]:
    """Names of all, whatever is in them. Links are not followed."""
    found = []
    with suppress(OSError), entered(root, "v1") as place:
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
        try:
            names = os.listdir(opened)
        finally:
            os.close(opened)
        for name in filter(_NAME.fullmatch, names):
            with suppress(OSError), entered(root, "v1", name):
                found.append(name)
    return sorted(found)


def read_meta(root: str, namespace: str) -> dict[str, Any]:
    """What a namespace is made of; empty if its ``meta.json`` is missing or no such file."""
    try:
        with entered(root, "v1", namespace) as place:
            return load_meta(place)
    except OSError:
        return {}


def summarize(root: str) -> Summary:
    """Count everything. Raises OSError if ``root`` is not a directory that can be read."""
    os.scandir(root).close()
    found = Summary(root)
    namespaces: dict[str, NamespaceSummary] = {}
    shapes: dict[tuple[str, int], Inspection] = {}
    now = time.time()

    def visit(file: TreeFile) -> None:
        if not file.key:
            found.other_bytes += file.bytes
            found.abandoned += is_abandoned(file, now)
            found.being_written += not is_abandoned(file, now)
            return
        one = namespaces.get(file.namespace)
        if one is None:
            one = NamespaceSummary(file.namespace, read_meta(root, file.namespace))
            namespaces[file.namespace] = one
        used = file.modified_ns / 1e9
        one.oldest = min(one.oldest, used) if one.chunks else used
        one.newest = max(one.newest, used)
        one.ranks.add(file.rank)
        one.chunks += 1
        one.bytes += file.bytes
        shape = shapes.get((file.namespace, file.rank))
        if shape is None:  # one header tells for all of them
            shape = inspect_chunk(root, file.namespace, file.rank, file.key, blocks=False)
            if shape.finding is not Finding.SOUND:
                return
            shapes[file.namespace, file.rank] = shape
        if shape.block_bytes < PAGE_BYTES:  # how many there are is lost in the padding
            one.tokens += inspect_chunk(
                root, file.namespace, file.rank, file.key, blocks=False
            ).tokens
        else:
            one.tokens += max(0, file.size - PAGE_BYTES) // shape.block_bytes * shape.block_tokens

    found.complete = scan_tree(root, visit)
    found.namespaces = sorted(namespaces.values(), key=lambda one: -one.bytes)
    return found


@dataclass(frozen=True, slots=True)
class Checked:
    """One chunk that was read: whether it is gone now, or why it could not be removed."""

    file: TreeFile
    inspection: Inspection
    gone: bool = False
    error: str = ""


@dataclass(slots=True)
class Verification:
    """What reading every chunk found. ``bytes`` are those that were read of sound ones."""

    sound: int = 0
    bytes: int = 0
    bad: list[Checked] = field(default_factory=list)
    unreadable: list[Checked] = field(default_factory=list)
    abandoned: int = 0
    complete: bool = True

    @property
    def clean(self) -> bool:
        """Whether everything was read and nothing bad is left."""
        return self.complete and not self.unreadable and all(one.gone for one in self.bad)


def verify(
    root: str,
    *,
    delete: bool = False,
    threads: int = 4,
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Read every chunk of all namespaces and check it as a load does.

    ``delete`` removes the bad ones, as a load would, and what dead writers left. Chunks that go
    while this runs are passed over. ``progress`` is called with the bytes of each chunk, read or
    not, on this thread. Raises OSError if ``root`` cannot be read.
    """
    os.scandir(root).close()
    found = Verification()
    now = time.time()

    def take(checked: Checked) -> None:
        finding = checked.inspection.finding
        if finding is Finding.SOUND:
            found.sound += 1
            found.bytes += checked.inspection.bytes
        elif finding is Finding.BAD:
            found.bad.append(checked)
        elif finding is Finding.UNREADABLE:
            found.unreadable.append(checked)
        if progress is not None:
            progress(checked.file.bytes)

    with ThreadPoolExecutor(threads, thread_name_prefix="lmkv-verify") as pool:
        waiting: list[Future[Checked]] = []

        def visit(file: TreeFile) -> None:
            if file.key:
                waiting.append(pool.submit(_check, root, file, delete))
            elif is_abandoned(file, now) and not file.removed:
                found.abandoned += 1
            while len(waiting) > 8 * threads or (waiting and waiting[0].done()):
                take(waiting.pop(0).result())

        found.complete = scan_tree(root, visit, _sweep_before(now) if delete else _NEVER)
        for future in waiting:
            take(future.result())
    return found


def _check(root: str, file: TreeFile, delete: bool) -> Checked:
    inspection = inspect_chunk(root, file.namespace, file.rank, file.key, blocks=True)
    if inspection.finding is not Finding.BAD or not delete:
        return Checked(file, inspection)
    try:
        removal = remove_chunk(root, file)
    except OSError as error:
        return Checked(file, inspection, error=str(error))
    if removal is Removal.KEPT:  # another has come into its place, or it was touched
        again = inspect_chunk(root, file.namespace, file.rank, file.key, blocks=True)
        still = again.finding is Finding.BAD
        return Checked(file, again, error="it was used meanwhile" if still else "")
    return Checked(file, inspection, gone=True)


_NEVER = -(1 << 63)


def _sweep_before(now: float) -> int:
    return int((now - ABANDONED_SECONDS) * 1e9)


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

        self._scan(visit, _NEVER if self._dry_run else _sweep_before(self._now))

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

        self._scan(visit, _NEVER)
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
        of_the_future = _is_of_the_future(file.modified_ns, self._now)
        return file.modified_ns - (LONG_BEFORE_NS if of_the_future else 0)

    def _may_go(self, file: TreeFile) -> bool:
        if not file.key or self._namespace not in {None, file.namespace}:
            return False
        now = time.time() - self._clock_ahead
        settled = now - file.changed_ns / 1e9 >= SPARED_SECONDS
        return settled or _is_of_the_future(file.changed_ns, now)

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


def filesystem_now(root: str) -> float:
    """Now by the clock that stamps files under ``root``: a server's may differ from ours.

    Writes an empty file there, and removes it.
    """
    try:
        # It has no name, so that nothing is left whatever happens.
        with tempfile.TemporaryFile(dir=root) as file:
            return os.fstat(file.fileno()).st_ctime
    except OSError:  # a full disk, which is what a clean-up is for, or one that may only be read
        return time.time()
