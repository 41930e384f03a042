"""A folder for one run of the demo: the engines' logs and, without --dir, their KV."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lmkv.demo.errors import DemoError
from lmkv.demo.model import default_cache_dir

_LOCK = "lock"
KV = "kv"


@contextlib.contextmanager
def run_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder under `parent` (the user's cache folder), removed at the end.

    On disk rather than in /tmp, which is memory on many machines. When the `with` block fails,
    the logs stay until the next run; KV never does. A run that was killed leaves its folder
    behind, and its lock with nobody holding it: the next run removes such folders.
    """
    parent = parent or default_cache_dir() / "runs"
    try:
        folder, lock = _make(parent)
    except OSError as error:
        raise DemoError(
            f"cannot make a folder for the run under {parent}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder you may write to",
        ) from error
    with lock:
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder / KV, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _make(parent: Path) -> tuple[Path, IO[str]]:
    """A new folder and its lock, held; removes the folders that nobody holds."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / _LOCK).open("w") as all_folders:
        fcntl.flock(all_folders, fcntl.LOCK_EX)
        for folder in parent.glob("run-*"):
            with contextlib.suppress(BlockingIOError), (folder / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock


def free_bytes(folder: Path) -> int:
    """Free bytes of the filesystem that `folder` is, or will be, on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.fspath(folder)).free
