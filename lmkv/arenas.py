"""Arenas: host memory that the engines of a node share, each a file in a directory in memory.

An engine finds its own by the size of its slabs; people find all of them by their names
(csrc/arena/arena_file.cpp). Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lmkv._C import ArenaReport, arena_report, remove_arena
from lmkv.errors import ArenaError

_NAME = re.compile(
    r"lmkv-(?P<group>g?)(?P<owner>0|[1-9]\d{0,9})-(?P<slab_bytes>[1-9]\d{0,14})\.arena"
)


@dataclass(frozen=True, slots=True)
class ArenaName:
    """What a file's name says: whose it is, a user's or a group's, and how large its slabs are."""

    owner: int
    slab_bytes: int
    file_mode: str

    @property
    def is_ours(self) -> bool:
        """Whether engines of this user would use it."""
        return self.owner == (os.getegid() if self.file_mode == "group" else os.geteuid())


def parse_name(name: str) -> ArenaName | None:
    """None for what is no arena's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    file_mode = "group" if match["group"] else "private"
    return ArenaName(int(match["owner"]), int(match["slab_bytes"]), file_mode)


@dataclass(frozen=True, slots=True)
class Arena:
    """One that engines of this user have, as it was a moment ago; no ``report`` but an ``error``
    where it cannot be read.
    """

    path: str
    name: ArenaName
    report: ArenaReport | None = None
    error: str = ""

    @property
    def engines(self) -> int:
        """How many use it."""
        return sum(one.is_alive for one in self.report.members) if self.report else 0

    @property
    def dead(self) -> int:
        """Engines that were killed, and that nobody has noticed yet."""
        return len(self.report.members) - self.engines if self.report else 0


def find(directory: str, *, thorough: bool = False) -> list[Arena]:
    """The arenas of this user in ``directory``, and of its group; none where there is no such
    directory. May take a second for each whose lock is held.
    """
    return list(_found(directory, thorough))


def _found(directory: str, thorough: bool) -> Iterator[Arena]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    for file in names:
        name = parse_name(file)
        if name is None or not name.is_ours:
            continue
        path = os.path.join(directory, file)
        try:
            report = arena_report(directory, name.slab_bytes, name.file_mode, thorough)
        except ArenaError as error:
            yield Arena(path, name, error=str(error).removeprefix(f"{path}: "))
        else:
            if report is not None:  # it was taken away in between
                yield Arena(path, name, report)


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of an arena: ``bytes`` were given back, or an ``error`` says why not."""

    path: str
    bytes: int = 0
    error: str = ""


def remove(arena: Arena, *, dry_run: bool = False) -> Removed:
    """Take it away, with its memory. One that engines use stays as it is: io_uring and the GPU's
    driver go on with the pages that they were given, whatever becomes of the file.
    """
    if arena.report is None:
        return Removed(arena.path, error=arena.error)
    if arena.engines:
        pids = ", ".join(str(one.pid) for one in arena.report.members if one.is_alive)
        return Removed(arena.path, error=f"engines use it (process {pids}): end them first")
    if dry_run:
        return Removed(arena.path, arena.report.bytes_taken)
    name = arena.name
    try:
        size = remove_arena(os.path.dirname(arena.path), name.slab_bytes, name.file_mode)
    except ArenaError as error:
        return Removed(arena.path, error=str(error).removeprefix(f"{arena.path}: "))
    return Removed(arena.path, size)
