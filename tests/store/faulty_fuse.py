"""A FUSE filesystem over another directory that fails or hangs as a file tells it to.

Usage: ``python faulty_fuse.py SOURCE MOUNTPOINT CONTROL``; runs until it is unmounted. CONTROL is a
JSON object that every operation looks at: names of operations (``OPERATIONS``, or "all" for all of
them) with "hang" or the name of an errno; "quota" with the bytes that may be written in all;
"clock" with the seconds by which its times are ahead.
"""

import errno
import functools
import json
import os
import sys
import time
from pathlib import Path

import mfusepy

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))
from fuse_without_direct_io import WithoutDirectIO

OPERATIONS = (
    "open", "create", "release", "getattr", "readdir", "read", "write", "truncate", "fsync",
    "rename", "unlink", "mkdir", "rmdir", "utimens", "statfs",
)  # fmt: skip


def faulty(name):
    """The method of that name, behind its faults."""
    method = getattr(WithoutDirectIO, name)

    @functools.wraps(method)
    def operation(self, *args):
        while (fault := self.faults().get(name, self.faults().get("all"))) == "hang":
            time.sleep(0.01)
        if fault:
            raise OSError(getattr(errno, fault), f"as {self.control} says")
        return method(self, *args)

    return operation


class Faulty(WithoutDirectIO):
    def __init__(self, source, control):
        super().__init__(source)
        self.control = control

    def faults(self):
        with open(self.control, encoding="utf-8") as file:
            return json.load(file)

    def used(self):
        total = 0
        for folder, _, names in os.walk(self.source):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    continue
        return total


for each in OPERATIONS:
    setattr(Faulty, each, faulty(each))


class Limited(Faulty):
    """And with a quota and a clock of its own."""

    def init_with_config(self, conn, config):
        conn.max_background = 64  # what hangs is to keep nothing else waiting here

    def _open(self, path, flags, *mode):
        # The kernel passes its page cache by; below, O_DIRECT would want pages that Python has not.
        return os.open(self._real(path), flags & ~os.O_DIRECT, *mode)

    def write(self, path, data, offset, fh):
        quota = self.faults().get("quota")
        if quota is not None and self.used() + len(data) > quota:
            raise OSError(errno.EDQUOT, "the quota is used up")
        return super().write(path, data, offset, fh)

    def getattr(self, path, fh=None):
        attributes = super().getattr(path, fh)
        ahead = int(self.faults().get("clock", 0)) * 1_000_000_000
        for name in ("st_atime", "st_mtime", "st_ctime"):
            attributes[name] += ahead
        return attributes


if __name__ == "__main__":
    _, source, mount, control = sys.argv
    timeouts = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    mfusepy.FUSE(Limited(source, control), mount, foreground=True, max_threads=64, **timeouts)
