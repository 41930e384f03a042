"""A FUSE filesystem that passes everything to a directory: a second host's mount of it.

Usage: ``python second_mount.py SOURCE MOUNTPOINT SECONDS``; runs until it is unmounted. As the
client of a network filesystem does, the kernel believes names and attributes for SECONDS.
"""

import os
import sys
from pathlib import Path

import mfusepy

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))
from fuse_without_direct_io import WithoutDirectIO


class Passthrough(WithoutDirectIO):
    def _open(self, path, flags, *mode):
        # O_DIRECT is between the kernel and us; Python's buffers are not aligned for more.
        return os.open(self._real(path), flags & ~os.O_DIRECT, *mode)


if __name__ == "__main__":
    mfusepy.FUSE(
        Passthrough(sys.argv[1]),
        sys.argv[2],
        foreground=True,
        entry_timeout=float(sys.argv[3]),
        attr_timeout=float(sys.argv[3]),
    )
