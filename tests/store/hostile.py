"""What may lie in the place of a file or a directory of ours, and small engines that meet it."""

import ctypes
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmkv import _C

BLOCK_BYTES, BLOCKS, PER_CHUNK, TOKENS = 4096, 32, 4, 16
CHUNK_BYTES = 4096 + PER_CHUNK * BLOCK_BYTES
NAMESPACE = bytes(range(32))
FAN_OUT = "abc"  # of all keys: they share a directory
SECRET = b"nobody's KV " * 2000


def key(number: int) -> bytes:
    return bytes.fromhex(f"{FAN_OUT}{number:061x}")


def chunk_path(root: Path, number: int, rank: int = 0, namespace: bytes = NAMESPACE) -> Path:
    name = key(number).hex()
    return root / "v1" / namespace.hex()[:16] / f"r{rank}" / FAN_OUT / f"{name}.kv"


class SmallEngine:
    """Chunks of four blocks of a page each; chunk ``number`` has a content of its own."""

    def __init__(self, root: Path, io_engine: str = "auto", **options: Any) -> None:
        self.memory = ctypes.create_string_buffer(BLOCKS * BLOCK_BYTES)
        self.tokens = options.pop("block_tokens", TOKENS)
        base = {"host_memory": 1 << 20, "free_space_floor": 0, "namespace": NAMESPACE, "rank": 0}
        self.engine = _C.Engine(
            _C.EngineOptions(
                root=str(root), block_count=BLOCKS, block_tokens=self.tokens,
                segments=[(ctypes.addressof(self.memory), BLOCK_BYTES, BLOCK_BYTES)],
                blocks_per_chunk=PER_CHUNK, io_engine=io_engine, **{**base, **options},
            )
        )  # fmt: skip

    @staticmethod
    def content(number: int) -> bytes:
        return bytes([number % 251 + 1]) * (PER_CHUNK * BLOCK_BYTES)

    def stats(self) -> dict[str, int]:
        return self.engine.stats()

    def store(self, number: int) -> str:
        """Store it; the error that it ended with, "" if there was none."""
        ctypes.memmove(self.memory, self.content(number), PER_CHUNK * BLOCK_BYTES)
        self.engine.poll()
        if not self.engine.store(key(number), 0, list(range(PER_CHUNK))):
            return "dropped"
        return self._ended()[-1].error

    def load(self, *numbers: int) -> list[bool]:
        """Which of the chunks came. What came is right, and where nothing came nothing changed."""
        self.engine.poll()
        targets = [PER_CHUNK * (1 + i) for i in range(len(numbers))]
        untouched = b"\xee" * (PER_CHUNK * BLOCK_BYTES)
        for first in targets:
            ctypes.memmove(self._at(first), untouched, len(untouched))
        self.engine.load(
            [
                (key(number), 0, PER_CHUNK, 0, list(range(first, first + PER_CHUNK)))
                for number, first in zip(numbers, targets, strict=True)
            ]
        )
        (done,) = self._ended()
        came = [index not in done.failed_chunks for index in range(len(numbers))]
        for number, first, it_came in zip(numbers, targets, came, strict=True):
            found = ctypes.string_at(self._at(first), len(untouched))
            assert found == (self.content(number) if it_came else untouched)
        return came

    def _at(self, block: int) -> int:
        return ctypes.addressof(self.memory) + block * BLOCK_BYTES

    def _ended(self) -> list[_C.Completion]:
        assert self.engine.drain(20), "it hangs"
        return self.engine.poll()


@contextmanager
def engine(root: Path, io_engine: str = "auto", **options: Any) -> Iterator[SmallEngine]:
    one = SmallEngine(root, io_engine, **options)
    try:
        yield one
    finally:
        assert one.engine.close(20)


def fill(root: Path, *numbers: int, **options: Any) -> None:
    with engine(root, **options) as writer:
        for number in numbers:
            assert writer.store(number) == ""


@dataclass(frozen=True)
class Place:
    """Where something hostile goes, what was there, and what is outside and nobody's business."""

    path: Path
    good: bytes
    outside: Path


Put = Callable[[Place], object]


def link_to(name: str) -> Put:
    return lambda place: place.path.symlink_to(place.outside / name)


def bytes_of(change: Callable[[bytearray], bytes]) -> Put:
    return lambda place: place.path.write_bytes(change(bytearray(place.good)))


def make_node(kind: int, major: int, minor: int) -> Put:
    def put(place: Place) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        try:
            os.mknod(place.path, kind | 0o666, os.makedev(major, minor))
        except PermissionError as error:
            pytest.skip(f"no devices here: {error}")

    return put


def make_socket(place: Place) -> None:
    here = os.getcwd()
    os.chdir(place.path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(place.path.name)
    finally:
        os.chdir(here)


def make_sparse(place: Place) -> None:
    with place.path.open("wb") as file:
        file.truncate(1 << 40)


def make_immutable(place: Place) -> None:
    place.path.write_bytes(bytes(CHUNK_BYTES))
    if subprocess.run(["chattr", "+i", place.path], check=False, capture_output=True).returncode:
        pytest.skip("no immutable files here")


def make_directory_in_use(place: Place) -> None:
    place.path.mkdir()
    (place.path / "users own").write_bytes(SECRET)


def sealed(change: Callable[[bytearray], object]) -> Callable[[bytearray], bytes]:
    """The header changed, and damaged: its checksum is not made right again."""

    def changed(data: bytearray) -> bytes:
        change(data)
        return bytes(data)

    return changed


# What is no chunk and no file.
NO_FILES: dict[str, Put] = {
    "link_to_a_good_chunk": link_to("chunk"),
    "link_to_a_secret": link_to("secret"),
    "link_to_a_directory": link_to("folder"),
    "dangling_link": link_to("nothing"),
    "link_to_itself": lambda place: place.path.symlink_to(place.path),
    "link_to_a_fifo": link_to("fifo"),
    "fifo": lambda place: os.mkfifo(place.path),
    "socket": make_socket,
    "endless_device": make_node(stat.S_IFCHR, 1, 5),  # /dev/zero
    "empty_device": make_node(stat.S_IFCHR, 1, 3),  # /dev/null
    "device_that_blocks": make_node(stat.S_IFCHR, 10, 229),  # /dev/fuse
    "block_device": make_node(stat.S_IFBLK, 7, 200),
    "empty_directory": lambda place: place.path.mkdir(),
}
# Files of another size than a chunk's.
WRONG_SIZES: dict[str, Put] = {
    "empty_file": bytes_of(lambda data: b""),
    "one_byte_short": bytes_of(lambda data: bytes(data[:-1])),
    "one_byte_long": bytes_of(lambda data: bytes(data) + b"\0"),
    "a_page_short": bytes_of(lambda data: bytes(data[:-4096])),
    "a_page_long": bytes_of(lambda data: bytes(data) + bytes(4096)),
    "sparse_file_of_1_TiB": make_sparse,
    "hard_link_to_a_secret": lambda place: os.link(place.outside / "secret", place.path),
}
# Files of the right size that are not the chunk.
WRONG_BYTES: dict[str, Put] = {
    "zeros": bytes_of(lambda data: bytes(len(data))),
    "another_magic": bytes_of(sealed(lambda data: data.__setitem__(0, 0x88))),
    "version_2": bytes_of(sealed(lambda data: data.__setitem__(8, 2))),
    "a_flipped_bit": bytes_of(sealed(lambda data: data.__setitem__(9000, data[9000] ^ 4))),
    "hard_link_to_a_secret_of_that_size": lambda place: os.link(
        place.outside / "secret of a chunk's size", place.path
    ),
    "another_key": lambda place: shutil.copy(place.outside / "chunk of another key", place.path),
    "another_namespace": lambda place: shutil.copy(
        place.outside / "chunk of another namespace", place.path
    ),
    "another_rank": lambda place: shutil.copy(place.outside / "chunk of another rank", place.path),
    "another_block_size": lambda place: shutil.copy(
        place.outside / "chunk of another block size", place.path
    ),
}
# What cannot be removed, or is not ours to remove.
STUCK: dict[str, Put] = {
    "directory_in_use": make_directory_in_use,
    "immutable_file": make_immutable,
}


def make_outside(folder: Path) -> None:
    """What is nobody's business: a sound chunk, a secret, a FIFO, a directory with chunks in it."""
    fill(folder / "tree", 1, 2)
    fill(folder / "tree", 1, rank=1)
    fill(folder / "tree", 1, namespace=bytes(32))
    fill(folder / "other tree", 1, block_tokens=2 * TOKENS)
    tree = folder / "tree"
    shutil.copy(chunk_path(tree, 1), folder / "chunk")
    shutil.copy(chunk_path(tree, 2), folder / "chunk of another key")
    shutil.copy(chunk_path(tree, 1, rank=1), folder / "chunk of another rank")
    shutil.copy(chunk_path(tree, 1, namespace=bytes(32)), folder / "chunk of another namespace")
    shutil.copy(chunk_path(folder / "other tree", 1), folder / "chunk of another block size")
    (folder / "secret").write_bytes(SECRET)
    (folder / "secret of a chunk's size").write_bytes(SECRET[:CHUNK_BYTES].ljust(CHUNK_BYTES))
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    shutil.copy(folder / "chunk", folder / "folder" / f"{key(1).hex()}.kv")
    for path in folder.rglob("*"):
        if not path.is_symlink() and path.is_file():
            os.utime(path, (1_600_000_000, 1_600_000_000))


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Of all that is in it: type, mode, owner, size, time and bytes. Directories' times count.

    But not those of secrets: who puts a hard link to a file into the tree puts the file there, and
    a use of it may renew its time.
    """
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20:
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(folder))] = (
            status.st_mode, status.st_uid, status.st_size, content,
            None if path.name.startswith("secret") else status.st_mtime_ns,
        )  # fmt: skip
    return found
