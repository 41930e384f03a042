"""``lmkv doctor``: whether engines of this node can share host memory as they are told to."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from lmkv.cgroup import memory_limit
from lmkv.cli.diagnosis import Diagnosis
from lmkv.cli.text import size_text
from lmkv.config import Config

if TYPE_CHECKING:
    from lmkv.arenas import Arena

KINDS = ("tmpfs", "hugetlbfs")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
ALONE = "Until then each engine has memory of its own."


def examine_memory(found: Diagnosis, settings: Config, *, has_gpu: bool) -> None:
    """Of ``settings`` whose host memory is shared. All that is wrong is a note: engines work
    without, each for itself.
    """
    directory, size = settings.arena_directory, settings.host_memory.bytes
    kind = _kind(found, directory)
    if not kind:
        return
    from lmkv import arenas

    ours = [
        one
        for one in arenas.find(directory, thorough=True)
        if one.name.file_mode == settings.file_mode
    ]
    for number, arena in enumerate(ours, 1):
        suffix = f" {number}" if len(ours) > 1 else ""
        found.facts[f"arena{suffix}"] = _in_short(arena)
        _examine_arena(found, arena, size)
    _examine_room(found, directory, kind, size, _missing(ours, size))
    _examine_limits(found, size, has_gpu=has_gpu)


def _kind(found: Diagnosis, directory: str) -> str:
    """The kind of filesystem; "", and it is said why, where engines cannot use it."""
    from lmkv.tree_access import mount_of

    mount = mount_of(directory)
    if not os.path.isdir(directory) or mount is None:
        why = "is not there"
    elif mount.type not in KINDS:
        why = f"is {mount.type}, and neither tmpfs nor hugetlbfs"
    elif not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        why = f"may not be written to by user {os.geteuid()}"
    else:
        return mount.type
    found.facts["shared memory"] = f"{directory}: cannot be used"
    found.note(
        f"host_memory is to be shared in {directory}, which {why}: name a tmpfs that this user may "
        f"write to (arena_directory). {ALONE}"
    )
    return ""


def _missing(ours: list[Arena], size: int) -> int:
    """Bytes that engines may still take: for arenas that are there, or for a new one."""
    reports = [one.report for one in ours if one.report is not None]
    return sum(one.bytes - one.bytes_taken for one in reports) if reports else size


def _room(directory: str, kind: str) -> tuple[int, int] | None:
    """Bytes that are free, and all; None where there is no limit but the host's memory."""
    space = os.statvfs(directory)
    if space.f_blocks:
        return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    if kind == "tmpfs":
        return None
    pages = HUGE_PAGES / f"hugepages-{space.f_bsize >> 10}kB"
    free, every = (
        int((pages / name).read_text(encoding="ascii")) * space.f_bsize
        for name in ("free_hugepages", "nr_hugepages")
    )
    return free, every


def _examine_room(found: Diagnosis, directory: str, kind: str, size: int, missing: int) -> None:
    room = _room(directory, kind)
    if room is None:
        found.facts["shared memory"] = f"{directory}: {kind} without a limit"
        return
    free, every = room
    found.facts["shared memory"] = (
        f"{directory}: {kind}, {size_text(free)} free of {size_text(every)}"
    )
    if missing <= free:
        return
    if size > every:
        advice = (
            "A container's own has 64 MiB. It has more with --shm-size, or the host's with "
            "--ipc=host (Docker); with a volume of medium Memory, or hostIPC (Kubernetes). On a "
            f"host: mount -o remount,size=... {directory}."
        )
    else:
        advice = f"See what else is there: ls -l {directory}, lmkv gc --memory."
    found.note(
        f"host_memory is {size_text(size)} and wants {size_text(missing)} more of {directory}, "
        f"where {size_text(free)} of {size_text(every)} are free: the arena stays smaller, or is "
        f"not made at all. {advice}"
    )


def _examine_limits(found: Diagnosis, size: int, *, has_gpu: bool) -> None:
    limit = memory_limit()
    if limit is not None:
        found.facts["memory limit"] = f"{size_text(limit)} (cgroup)"
        if size >= limit:
            found.note(
                f"host_memory is {size_text(size)}, and this container may use {size_text(limit)} "
                "in all: what it brings into shared memory counts as its own, and the kernel kills "
                "it at the limit. Raise the limit, or lower host_memory."
            )
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if has_gpu and locked != resource.RLIM_INFINITY and locked < size:
        found.note(
            f"host_memory is {size_text(size)}, and {size_text(locked)} may be locked "
            "(RLIMIT_MEMLOCK): if it cannot be pinned, copies to and from the GPU are slow. "
            "ulimit -l unlimited; in Docker --ulimit memlock=-1."
        )


def _in_short(arena: Arena) -> str:
    if arena.report is None:
        return f"{arena.path}: cannot be used"
    taken, size = size_text(arena.report.bytes_taken), size_text(arena.report.bytes)
    return (
        f"{arena.path}: {taken} of {size} taken, {arena.report.slots.ready:,} chunks, "
        f"engines: {arena.engines}"
    )


def _examine_arena(found: Diagnosis, arena: Arena, size: int) -> None:
    if arena.report is None:
        found.note(
            f"{arena.path} cannot be used: {arena.error}. Remove it, once no engine uses it: "
            f"rm {arena.path}. {ALONE}"
        )
        return
    if arena.report.fault:
        found.note(
            f"{arena.path} is not as it must be ({arena.report.fault}): end its engines, then "
            "lmkv gc --memory. It should not happen: report it."
        )
    # Whole slabs, as many as there was room for.
    if not 0 <= size - arena.report.bytes < arena.report.slab_bytes:
        found.note(
            f"{arena.path} has {size_text(arena.report.bytes)}, not {size_text(size)}: an arena "
            "keeps the size that it was made with. For another end its engines, then lmkv gc "
            "--memory."
        )
