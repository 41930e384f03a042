"""A FUSE filesystem that passes everything to a directory: a second host's mount of it.

Usage: ``python second_mount.py SOURCE MOUNTPOINT SECONDS ASKED``; runs until it is unmounted. As
the client of a network filesystem does, the kernel believes names and attributes for SECONDS. Of
which paths it asks for attributes all the same is written to the file ASKED.
"""

import os
import sys
from pathlib import Path

import mfusepy

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))
from fuse_without_direct_io import WithoutDirectIO


class Passthrough(WithoutDirectIO):
    def getattr(self, path, fh=None):
        with open(sys.argv[4], "a", encoding="utf-8") as asked:
            asked.write(f"{path}\n")
        return super().getattr(path, fh)

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
