"""How much memory the control group of this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60  # version 1 has a number near 2^63 for it


def memory_limit(proc: Path = Path("/proc/self")) -> int | None:
    """Bytes: the smallest limit of this process's cgroup and of those above it that can be seen
    here; None without one. Of either version of cgroups.
    """
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = [
        limit
        for line in groups
        for folder, name in _folders(line, mounts)
        if (limit := _read(folder / name)) is not None
    ]
    return min(limits, default=None)


def _folders(group: str, mounts: list[str]) -> Iterator[tuple[Path, str]]:
    """Where the limits of ``group``, a line of proc's cgroup, and of those above it are."""
    _, controllers, path = group.split(":", 2)
    if controllers and "memory" not in controllers.split(","):
        return
    kind, name = ("cgroup", "memory.limit_in_bytes") if controllers else ("cgroup2", "memory.max")
    for mount in mounts:
        ours, _, theirs = mount.partition(" - ")
        root, point = ours.split()[3:5]
        of_kind, *_, options = theirs.split()
        if of_kind != kind or (controllers and "memory" not in options.split(",")):
            continue
        # What is mounted is a part of the tree in containers.
        below = path.removeprefix(root.rstrip("/")) if path.startswith(root) else ""
        folder = Path(point) / below.lstrip("/")
        while True:
            yield folder, name
            if folder == Path(point):
                break
            folder = folder.parent


def _read(file: Path) -> int | None:
    try:
        limit = int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max"
        return None
    return limit if limit < NO_LIMIT else None
