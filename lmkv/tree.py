"""What is under a directory: all namespaces, whoever wrote them, without an engine.

Nothing here imports torch. Everything blocks on the disk; a directory may be in use meanwhile.
"""

from __future__ import annotations

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
# And csrc/common/clocks.hpp.
CLOCKS_DIFFER_SECONDS = 3600.0
NEVER = -(1 << 63)  # for scans that sweep nothing
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
    if not is_of_the_future(file.modified_ns, now):
        return now - file.modified_ns / 1e9 > ABANDONED_SECONDS
    changed = now - file.changed_ns / 1e9  # who writes sets both times
    return changed > ABANDONED_SECONDS or is_of_the_future(file.changed_ns, now)


def sweep_before(now: float) -> int:
    """A scan sweeps what dead writers have not written to since this: nanoseconds."""
    return int((now - ABANDONED_SECONDS) * 1e9)


def is_of_the_future(time_ns: int, now: float) -> bool:
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

        found.complete = scan_tree(root, visit, sweep_before(now) if delete else NEVER)
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


def filesystem_now(root: str) -> float:
    """Now by the clock that stamps files under ``root``: a server's may differ from ours.

    Writes an empty file there, and removes it.
    """
    try:
        # It has no name, so that nothing is left whatever happens; over NFS it has for a moment.
        with tempfile.TemporaryFile(dir=root) as file:
            return os.fstat(file.fileno()).st_ctime
    except OSError:  # a full disk, which is what a clean-up is for, or one that may only be read
        return time.time()
