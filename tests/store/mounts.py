"""Small filesystems that tests may break: a disk in a file, memory, a FUSE one with faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def run(*command: "str | Path") -> "subprocess.CompletedProcess[str]":
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


class Disk:
    """A filesystem of ``size`` bytes at ``path``: "ext4" or "xfs" in a file, or "tmpfs"."""

    def __init__(self, kind: str, folder: Path, size: int) -> None:
        self.kind, self.size = kind, size
        self.path, self._image = folder / "disk", folder / "disk.img"
        self._ballast = self.path / "of somebody else"
        self._loops: list[str] = []
        if os.geteuid() != 0 or (kind != "tmpfs" and not Path("/dev/loop-control").exists()):
            pytest.skip("needs root and loop devices, which this machine does not give")
        if kind != "tmpfs" and not shutil.which(f"mkfs.{kind}"):
            pytest.skip(f"needs mkfs.{kind}, which this machine does not have")
        self.path.mkdir()
        if kind != "tmpfs":
            self._make_image()
        self.mount()

    def _make_image(self) -> None:
        with self._image.open("wb") as file:
            file.truncate(self.size)
        options = {"ext4": ["-m", "0"], "xfs": []}[self.kind]
        done = run(f"mkfs.{self.kind}", "-q", *options, self._image)
        assert done.returncode == 0, done.stderr

    def mount(self, *, elsewhere: bool = False) -> None:
        """``elsewhere``: under another device number than any before."""
        if self.kind == "tmpfs":
            done = run("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.path)
        else:
            if elsewhere:
                other = self._image.with_name("other.img")
                other.write_bytes(bytes(1 << 20))
                self._loops.append(run("losetup", "-f", "--show", other).stdout.strip())
            done = run("mount", "-o", "loop", self._image, self.path)
        if done.returncode:
            pytest.skip(f"may not mount: {done.stderr.strip()}")

    def remount(self, option: str) -> None:
        """As "ro" once nothing is being written, or "rw"."""
        wait_for(lambda: run("mount", "-o", f"remount,{option}", self.path).returncode == 0)

    def unmount(self) -> None:
        """At once, whoever uses it."""
        assert run("umount", "-l", self.path).returncode == 0

    def device(self) -> int:
        return os.stat(self.path).st_dev

    def fill(self) -> None:
        """With a file of somebody else, to the last block."""
        with self._ballast.open("wb", buffering=0) as file:
            at = 0
            for step in (64 << 20, 1 << 20, 4096):
                while True:
                    try:
                        os.posix_fallocate(file.fileno(), at, step)
                    except OSError:
                        break
                    at += step

    def empty(self) -> None:
        self._ballast.unlink()

    def edit(self, *commands: str) -> None:
        """With debugfs (e2fsprogs), while it is not mounted."""
        if not shutil.which("debugfs"):
            pytest.skip("needs debugfs (e2fsprogs)")
        script = self._image.with_name("debugfs.txt")
        script.write_text("\n".join(commands) + "\n")
        done = run("debugfs", "-w", "-f", script, self._image)
        assert done.returncode == 0, done.stderr

    def remove(self) -> None:
        while self.path.is_mount():
            self.unmount()
        for loop in self._loops:
            run("losetup", "-d", loop)


class FaultyFuse:
    """``faulty_fuse.py`` over a directory, mounted at ``path``; faults as they are ``set``."""

    def __init__(self, folder: Path) -> None:
        if not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("fusermount3"):
            pytest.skip("needs /dev/fuse and fusermount3, which this machine does not give")
        self.path, self.source = folder / "mount", folder / "source"
        self._control = folder / "faults.json"
        for one in (self.path, self.source):
            one.mkdir(parents=True)
        self.set()
        self._server = subprocess.Popen(
            [sys.executable, HERE / "faulty_fuse.py", self.source, self.path, self._control]
        )
        try:
            wait_for(lambda: self.path.is_mount() or self._server.poll() is not None)
            assert self._server.poll() is None, "the filesystem did not start"
        except BaseException:
            self.remove()
            raise

    def set(self, **faults: "str | int") -> None:
        """All there are from now on (``faulty_fuse.py``). None: it works, and what hung goes on."""
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.rename(self._control)

    def freeze(self) -> None:
        """It answers nothing at all, once this returns: a signal may take its time."""
        self._server.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while any(
            (task / "stat").read_text().rpartition(")")[2].split()[0] != "T"
            for task in Path(f"/proc/{self._server.pid}/task").iterdir()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def thaw(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.set()
        self.thaw()
        run("fusermount3", "-uz", self.path)
        try:
            self._server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
