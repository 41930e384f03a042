"""Small filesystems of their own, for tests that fill them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mounts import Disk, FaultyFuse

Mount = Callable[..., Path]


@pytest.fixture
def loop_ext4(tmp_path: Path) -> Iterator[Mount]:
    """Makes an ext4 of so many bytes in a file, with options of mkfs.ext4, and mounts it."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices, which this machine does not give")
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4 (e2fsprogs)")
    mounted: list[Path] = []

    def mount(size: int, *options: str) -> Path:
        image, folder = tmp_path / f"disk{len(mounted)}.img", tmp_path / f"disk{len(mounted)}"
        with image.open("wb") as file:
            file.truncate(size)
        folder.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", *options, str(image)], check=True)
        done = subprocess.run(
            ["mount", "-o", "loop", str(image), str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"may not mount a loop device: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Makes filesystems: ``make_disk("ext4", 64 << 20)``."""
    made: list[Disk] = []

    def make(kind: str, size: int) -> Disk:
        folder = tmp_path / f"{kind}{len(made)}"
        folder.mkdir()
        made.append(Disk(kind, folder, size))
        return made[-1]

    yield make
    for disk in made:
        disk.remove()


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[FaultyFuse]:
    filesystem = FaultyFuse(tmp_path / "fuse")
    yield filesystem
    filesystem.remove()
