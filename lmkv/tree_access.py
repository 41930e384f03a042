"""What keeps engines from each other's files where their namespaces are equal: owners, modes,
clocks, mounts, and other sets of directories.

Nothing here imports torch. Everything blocks on the disk, and looks at a bounded number of files.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lmkv._C import root_of
from lmkv.tree import filesystem_now

LOOKED_AT = 200  # chunks of each rank of a namespace
CLOCKS_AGREE_SECONDS = 2.0
_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH


@dataclass(slots=True)
class Sample:
    """Some chunks of one namespace in one directory."""

    keys: list[bytes] = field(default_factory=list)
    owners: Counter[int] = field(default_factory=Counter)
    private: bool = False  # whether any file is for its owner only
    newest: float = 0.0


def sample(root: str, namespace: str) -> Sample:
    """Look at the first chunks that are found; what cannot be read is passed over."""
    found = Sample()
    for rank in _entries(Path(root) / "v1" / namespace):
        if rank.name.startswith("r") and rank.name[1:].isdigit():
            for file in islice(_chunks(rank), LOOKED_AT):
                try:
                    status = file.stat(follow_symlinks=False)
                except OSError:
                    continue
                found.keys.append(bytes.fromhex(file.name[:64]))
                found.owners[status.st_uid] += 1
                found.private |= not status.st_mode & _OTHERS_MAY_READ
                found.newest = max(found.newest, status.st_mtime)
    return found


def _chunks(rank: os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    for folder in _entries(rank):
        for file in _entries(folder):
            name = file.name.removesuffix(".kv")
            if len(name) == 64 and name != file.name and not name.strip("0123456789abcdef"):
                yield file


def _entries(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def forbidden(root: str) -> str:
    """Why an engine of this user could not work below ``root``; "" if nothing speaks against it."""
    for folder in (Path(root), Path(root) / "v1"):
        try:
            owner = folder.stat().st_uid
        except OSError:
            return ""  # not there yet, or what is wrong with it is found by trying
        if not _may_use(folder):
            return f"{folder} belongs to user {owner} and is closed to this one ({os.geteuid()})"
    return ""


def closed_namespaces(root: str) -> list[tuple[str, int]]:
    """Namespaces that this user cannot use, and whose they are."""
    return [
        (folder.name, folder.stat(follow_symlinks=False).st_uid)
        for folder in _entries(Path(root) / "v1")
        if folder.is_dir(follow_symlinks=False) and not _may_use(folder)
    ]


def _may_use(folder: os.PathLike[str]) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)


def owners_text(samples: list[Sample]) -> str:
    """Of how many users chunks are that only their owners may read; "" where all are one's."""
    owners = sum((one.owners for one in samples), Counter[int]())
    if len(owners) < 2 or not any(one.private for one in samples):
        return ""
    return ", ".join(f"{count} of user {uid}" for uid, count in sorted(owners.items()))


def clock_text(root: str, samples: list[Sample]) -> str:
    """How the clocks of this host, the filesystem, and who wrote the chunks differ; "" if little.

    Writes an empty file. The order in which chunks are evicted is in their times.
    """
    ahead = filesystem_now(root) - time.time()
    if abs(ahead) > CLOCKS_AGREE_SECONDS:
        return f"the filesystem's clock is {_seconds(ahead)} of this host's"
    newest = max((one.newest for one in samples), default=0.0) - time.time()
    if newest > CLOCKS_AGREE_SECONDS:
        return f"a chunk was used by a host whose clock is {_seconds(newest)} of this one's"
    return ""


def _seconds(ahead: float) -> str:
    return f"{abs(ahead):,.0f} s {'ahead' if ahead > 0 else 'behind'}"


def misplaced(directories: list[str], samples: dict[str, Sample]) -> dict[str, str]:
    """By directory that has chunks which an engine over all of ``directories`` looks for in another
    one: how many of those looked at, in words.
    """
    found = {}
    for directory, one in samples.items():
        wrong = sum(directories[root_of(directories, key)] != directory for key in one.keys)
        if wrong:
            found[directory] = f"{wrong} of {len(one.keys)}"
    return found


@dataclass(frozen=True, slots=True)
class Mount:
    """``source`` of a filesystem of this ``type`` on ``point``."""

    source: str
    type: str
    point: str


def mount_of(path: str) -> Mount | None:
    """What is mounted where ``path`` is; None if unknown."""
    try:
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
            lines = mounts.readlines()
    except OSError:
        return None
    found = None
    for line in lines:
        ours, _, theirs = line.partition(" - ")
        fields = ours.split()
        if fields[2] == f"{os.major(device)}:{os.minor(device)}" and _is_below(path, fields[4]):
            kind, source = theirs.split(" ")[:2]
            found = Mount(source, kind, fields[4])  # the last mount hides those before
    return found


def mount_text(path: str) -> str:
    """As in "server:/export on /mnt/kv"; "" if unknown."""
    mount = mount_of(path)
    return f"{mount.source} on {mount.point}" if mount else ""


def _is_below(path: str, mount_point: str) -> bool:
    real = os.path.realpath(path)
    return os.path.commonpath([real, mount_point]) == mount_point
