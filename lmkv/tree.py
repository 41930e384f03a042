"""What is under a directory: all namespaces, whoever wrote them, without an engine.

Nothing here imports torch. Everything blocks on the disk; a directory may be in use meanwhile.
"""

from __future__ import annotations

import heapq
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkv._C import Finding, Inspection, TreeFile, inspect_chunk, remove_file, scan_tree
from lmkv.errors import ConfigError

PAGE_BYTES = 4096  # of the header, and of what a file is padded to
# As engines do: csrc/store/housekeeper.hpp, HousekeepingOptions.
ABANDONED_SECONDS = 3600.0
SPARED_SECONDS = 5.0
# Chunks that a clean-up keeps in memory at once (it scans again for more): about 150 MB.
CANDIDATES = 500_000


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
    return not file.key and now - file.modified_ns / 1e9 > ABANDONED_SECONDS


def namespace_named(root: str, beginning: str) -> str:
    """The namespace under ``root`` whose name begins so. Raises ConfigError for none or several."""
    version = Path(root) / "v1"
    names = [path.name for path in version.iterdir() if path.name.startswith(beginning)]
    if len(names) != 1:
        found = ", ".join(sorted(names)) or "none"
        raise ConfigError(f"a namespace that begins with {beginning!r}: {found}")
    return names[0]


def read_meta(root: str, namespace: str) -> dict[str, Any]:
    """What a namespace is made of; empty if its ``meta.json`` is missing or no such file."""
    try:
        said = json.loads((Path(root) / "v1" / namespace / "meta.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    good = isinstance(said, dict) and all(isinstance(said.get(k), dict) for k in ("facts", "about"))
    return said if good else {}


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
            one.tokens += (file.bytes - PAGE_BYTES) // shape.block_bytes * shape.block_tokens

    found.complete = scan_tree(root, visit)
    found.namespaces = sorted(namespaces.values(), key=lambda one: -one.bytes)
    return found


@dataclass(frozen=True, slots=True)
class Checked:
    """One chunk that was read, and whether it was removed for what it turned out to be."""

    file: TreeFile
    inspection: Inspection
    removed: bool = False


@dataclass(slots=True)
class Verification:
    """What reading every chunk found. ``bytes`` are those that were read of sound ones."""

    sound: int = 0
    bytes: int = 0
    bad: list[Checked] = field(default_factory=list)
    unreadable: list[Checked] = field(default_factory=list)
    abandoned: int = 0
    complete: bool = True


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
    not, on this thread. Raises OSError if ``root`` cannot be read or a bad file cannot be removed.
    """
    os.scandir(root).close()
    found = Verification()
    now = time.time()

    def check(file: TreeFile) -> Checked:
        inspection = inspect_chunk(root, file.namespace, file.rank, file.key, blocks=True)
        bad = inspection.finding is Finding.BAD
        return Checked(file, inspection, bad and delete and remove_file(root, file))

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
                waiting.append(pool.submit(check, file))
            elif is_abandoned(file, now) and not (delete and remove_file(root, file)):
                found.abandoned += 1
            while len(waiting) > 8 * threads or (waiting and waiting[0].done()):
                take(waiting.pop(0).result())

        found.complete = scan_tree(root, visit)
        for future in waiting:
            take(future.result())
    return found


@dataclass(slots=True)
class Removal:
    """What a clean-up removed, or would have."""

    chunks: int = 0
    bytes: int = 0
    abandoned: int = 0
    left_bytes: int = 0


def clean(
    root: str,
    *,
    to_bytes: int | None = None,
    older_than: float | None = None,
    namespace: str | None = None,
    dry_run: bool = False,
) -> Removal:
    """Remove chunks that were not used for the longest time, and what dead writers left.

    Of ``namespace``, or of all: first those that were last used more than ``older_than`` seconds
    ago, then as many as it takes until all that is under ``root`` has ``to_bytes`` at most; with
    neither, all of them. What was used in the last seconds stays. Engines may run meanwhile: they
    miss what is gone. Raises OSError if ``root`` cannot be read or a file cannot be removed.
    """
    os.scandir(root).close()
    removal = Removal()
    while True:
        candidates, total, abandoned = _candidates(root, namespace, CANDIDATES)
        removal.left_bytes = total
        for file in abandoned:
            if dry_run or remove_file(root, file):
                removal.abandoned += 1
                removal.left_bytes -= file.bytes
        before = removal.chunks
        for file in _chosen(candidates, removal, to_bytes, older_than):
            if dry_run or remove_file(root, file):
                removal.chunks += 1
                removal.bytes += file.bytes
                removal.left_bytes -= file.bytes
        if dry_run or len(candidates) < CANDIDATES or removal.chunks == before:
            return removal


def _candidates(
    root: str, namespace: str | None, limit: int
) -> tuple[list[TreeFile], int, list[TreeFile]]:
    """Chunks that may go, the longest unused first; the bytes of everything; what was left."""
    heap: list[tuple[int, bytes, str, int, TreeFile]] = []
    abandoned: list[TreeFile] = []
    total = 0
    now = time.time()

    def visit(file: TreeFile) -> None:
        nonlocal total
        total += file.bytes
        if is_abandoned(file, now):
            abandoned.append(file)
        if not file.key or (namespace is not None and file.namespace != namespace):
            return
        if now - file.changed_ns / 1e9 < SPARED_SECONDS:
            return
        push = heapq.heappush if len(heap) < limit else heapq.heappushpop
        push(heap, (-file.modified_ns, file.key, file.namespace, file.rank, file))

    scan_tree(root, visit)
    heap.sort(reverse=True)
    return [file for *_, file in heap], total, abandoned


def _chosen(
    candidates: list[TreeFile], removal: Removal, to_bytes: int | None, older_than: float | None
) -> Iterator[TreeFile]:
    now = time.time()
    for file in candidates:
        old = older_than is not None and now - file.modified_ns / 1e9 > older_than
        above = to_bytes is not None and removal.left_bytes > to_bytes
        everything = older_than is None and to_bytes is None
        if not (old or above or everything):
            return
        yield file
