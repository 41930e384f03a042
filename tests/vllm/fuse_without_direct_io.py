"""A FUSE filesystem that passes everything to another directory but refuses O_DIRECT.

Usage: ``python fuse_without_direct_io.py SOURCE MOUNTPOINT``; runs until it is unmounted.
"""

import errno
import os
import sys

import mfusepy


class WithoutDirectIO(mfusepy.Operations):
    use_ns = True

    def __init__(self, source):
        self.source = source

    def _real(self, path):
        return self.source + path

    def _open(self, path, flags, *mode):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return os.open(self._real(path), flags, *mode)

    def open(self, path, flags):
        return self._open(path, flags)

    def create(self, path, mode, flags):
        return self._open(path, flags | os.O_CREAT, mode)

    def release(self, path, fh):
        os.close(fh)
        return 0

    def getattr(self, path, fh=None):
        status = os.lstat(self._real(path))
        names = ("mode", "nlink", "uid", "gid", "size", "ino", "blocks")
        attributes = {f"st_{name}": getattr(status, f"st_{name}") for name in names}
        for name in ("atime", "mtime", "ctime"):
            attributes[f"st_{name}"] = getattr(status, f"st_{name}_ns")
        return attributes

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self._real(path))]

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._real(path), length)
        return 0

    def fsync(self, path, datasync, fh):
        os.fsync(fh)
        return 0

    def rename(self, old, new):
        os.rename(self._real(old), self._real(new))
        return 0

    def link(self, target, source):
        os.link(self._real(source), self._real(target))
        return 0

    def unlink(self, path):
        os.unlink(self._real(path))
        return 0

    def mkdir(self, path, mode):
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path):
        os.rmdir(self._real(path))
        return 0

    def chmod(self, path, mode):
        os.chmod(self._real(path), mode)
        return 0

    def utimens(self, path, times=None):
        os.utime(self._real(path), ns=times)
        return 0

    def statfs(self, path):
        status = os.statvfs(self._real(path))
        names = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "frsize")
        return {f"f_{name}": getattr(status, f"f_{name}") for name in names}


if __name__ == "__main__":
    mfusepy.FUSE(WithoutDirectIO(sys.argv[1]), sys.argv[2], foreground=True)
