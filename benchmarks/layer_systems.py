"""The storage layers that ``storage_layers.py`` compares: what each is, and how it is set.

Run by that, with a pipe's descriptor, it is the process of some of them: a layer stores a document
from host memory, which is then overwritten, and loads it again.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from layer_classes import Layer, LMCache, Lmkv, Size, VllmFs
from peer_systems import SYSTEMS
from ttft_engine import Interpreter


def _lmcache_fs(folder: Path) -> dict[str, Any]:
    return {"remote_url": f"fs://localhost:0{folder}", "remote_serde": "naive"}


def _lmcache_disk(folder: Path) -> dict[str, Any]:
    return {"local_disk": str(folder), "max_local_disk_size": 8}


def _lmcache_disk_direct(folder: Path) -> dict[str, Any]:
    return {**_lmcache_disk(folder), "extra_config": {"use_odirect": True}}


@dataclass(frozen=True)
class LayerKind:
    """What is measured, and what the page says of it."""

    title: str
    home: str  # whose process it is in
    make: Callable[[Path, Size], Layer]
    checks: str = ""  # what is found damaged when it is loaded
    way: str = ""  # why it is as quick as it is
    published: str = ""  # what others measured, for where it does not run
    is_shown: bool = True  # what it loads; else its own checksums are all that sees it


_LMCACHE_PUBLISHED = (
    "published: its LocalDiskBackend, as second level below 64 GB of memory, holds 40.6k tokens/s"
    " with prompts of 64k tokens, 64 at once, O_DIRECT, on AMD GPUs (ROCm/rocm-aic#68)"
)
_VLLM_PUBLISHED = (
    "published: 1.94 s to the first token of 128k tokens, Qwen3-Coder-30B-A3B, H100 with TP 4, one"
    " directory (vllm-project/vllm#53126)"
)
_CACHED = "Stores end in the page cache; loads come through it, and no byte is verified."

# By the process that they share: starting one takes most of the time.
HOMES: dict[str, Callable[[], Interpreter | None]] = {
    "lmkv": lambda: None,
    "vllm": lambda: None,
    "lmcache": SYSTEMS["lmcache_in_process"].interpreter,
}
LAYERS = {
    "lmkv": LayerKind(
        "lmkv", "lmkv", functools.partial(Lmkv, has_copies=True), "checksums of all bytes"
    ),
    "lmkv_slabs": LayerKind(
        "lmkv without the copies from and to the KV cache",
        "lmkv", functools.partial(Lmkv, has_copies=False), "checksums of all bytes", is_shown=False,
    ),
    "vllm_fs": LayerKind(
        "vLLM's fs tier",
        "vllm", VllmFs,
        way="A request is one job of its manager's, and a job one thread's: a file of a block after"
        " the other, with O_DIRECT. No byte is verified.",
        published=_VLLM_PUBLISHED,
    ),
    "vllm_fs_blocks": LayerKind(
        "vLLM's fs tier, if each block were a job",
        "vllm", functools.partial(VllmFs, blocks_per_job=1),
        way="Its 32 threads each do a file of a block, with O_DIRECT, as its manager never has"
        " them. No byte is verified.",
        published=_VLLM_PUBLISHED,
    ),
    "lmcache_fs": LayerKind(
        "LMCache 0.5.6, in process, fs",
        "lmcache", functools.partial(LMCache, backend="RemoteBackend", settings=_lmcache_fs),
        way=_CACHED, published=_LMCACHE_PUBLISHED,
    ),
    "lmcache_disk": LayerKind(
        "LMCache 0.5.6, in process, local disk",
        "lmcache", functools.partial(LMCache, backend="LocalDiskBackend", settings=_lmcache_disk),
        way=_CACHED, published=_LMCACHE_PUBLISHED,
    ),
    "lmcache_disk_direct": LayerKind(
        "LMCache 0.5.6, in process, local disk with O_DIRECT",
        "lmcache",
        functools.partial(LMCache, backend="LocalDiskBackend", settings=_lmcache_disk_direct),
        way="Four threads write and read a file of a chunk each in one call, over its final name;"
        " no byte is verified, and another engine finds none of it.",
        published=_LMCACHE_PUBLISHED,
    ),
}  # fmt: skip


class Process:
    """The layers of one process, as ``storage_layers.py`` asks for them."""

    def __init__(self, names: list[str], folder: Path, size: Size) -> None:
        self._size = size
        self._layers: dict[str, Layer] = {}
        self.reasons: dict[str, str] = {}  # why others are not there
        for name in names:
            (folder / name).mkdir()
            try:
                self._layers[name] = LAYERS[name].make(folder / name, size)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is why
                self.reasons[name] = said(error)
        self._document = np.zeros(0, np.uint8)

    def store(self, layer: str, name: str) -> float:
        """A fresh document; seconds."""
        random = np.random.default_rng().bytes(self._size.bytes_total)
        self._document = np.frombuffer(random, np.uint8)
        self._layers[layer].fill(self._document)
        begin = time.perf_counter()
        self._layers[layer].store(name)
        return time.perf_counter() - begin

    def load(self, layer: str, name: str) -> float:
        """What was stored last; seconds. Raises RuntimeError if it is something else."""
        one = self._layers[layer]
        one.fill(np.zeros_like(self._document))
        begin = time.perf_counter()
        one.load(name)
        seconds = time.perf_counter() - begin
        if LAYERS[layer].is_shown:
            loaded = np.concatenate([np.zeros(0, np.uint8), *one.loaded()])
            if not np.array_equal(self._document, loaded):
                raise RuntimeError("what was loaded is not what was stored")
        return seconds


def said(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def serve(connection: Connection) -> None:
    """Until nobody asks any more."""
    process = Process(*connection.recv())
    connection.send(process.reasons)
    while True:
        try:
            what, *words = connection.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)  # without waiting for threads: all is in files that are removed
        try:
            connection.send((getattr(process, what)(*words), ""))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is why
            connection.send((0.0, said(error)))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
