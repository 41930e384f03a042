"""A real chunk through the whole core, there and back: what ``lmkv doctor`` tries in a directory.

Nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmkv import _C

BLOCK_BYTES = 1 << 20
BLOCKS = 8
WAIT_SECONDS = 30.0

MakeEngine = Callable[[_C.EngineOptions], _C.Engine]

_KEY = hashlib.sha256(b"lmkv doctor").digest()


@dataclass(frozen=True, slots=True)
class Trial:
    """One chunk of ``bytes`` that was stored and loaded. ``error``: what went wrong, if anything.

    Times are of one chunk on an idle engine: whether it works, not how fast a disk is.
    """

    bytes: int = 0
    store_seconds: float = 0.0
    load_seconds: float = 0.0
    error: str = ""


def try_chunk(directory: str, make_engine: MakeEngine = _C.Engine) -> Trial:
    """Store a chunk in a folder made for it below ``directory``, load it with another engine, and
    compare every byte. The folder is removed. Blocks on the disk.
    """
    try:
        folder = tempfile.mkdtemp(prefix=".lmkv-doctor-", dir=directory)
    except OSError as error:
        return Trial(error=str(error))
    try:
        return _try(folder, make_engine)
    except (_C.ConfigError, RuntimeError) as error:
        return Trial(error=str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(folder: str, make_engine: MakeEngine) -> Trial:
    size = BLOCKS * BLOCK_BYTES
    content = os.urandom(size)
    source = ctypes.create_string_buffer(content, size)
    target = ctypes.create_string_buffer(size)
    blocks = list(range(BLOCKS))
    options = _options(folder, source)
    stored, error = _run(make_engine(options), source, lambda engine: engine.store(_KEY, 0, blocks))
    if error:
        return Trial(size, error=f"a chunk could not be stored: {error}")
    chunk = (_KEY, 0, BLOCKS, 0, blocks)
    options = _options(folder, target)
    loaded, error = _run(make_engine(options), target, lambda engine: engine.load([chunk]))
    if error:
        return Trial(size, error=f"a chunk could not be loaded: {error}")
    if target.raw != content:
        return Trial(size, error="a chunk came back with other bytes")
    return Trial(size, stored, loaded)


def _options(folder: str, memory: ctypes.Array[ctypes.c_char]) -> _C.EngineOptions:
    return _C.EngineOptions(
        root=folder,
        namespace=bytes(32),
        rank=0,
        segments=[(ctypes.addressof(memory), BLOCK_BYTES, BLOCK_BYTES)],
        block_count=BLOCKS,
        block_tokens=1,
        blocks_per_chunk=BLOCKS,
        host_memory=2 * _C.slab_bytes(BLOCK_BYTES, BLOCKS),
        free_space_floor=0,
    )


def _run(
    engine: _C.Engine, memory: ctypes.Array[ctypes.c_char], job: Callable[[_C.Engine], int]
) -> tuple[float, str]:
    """Seconds that a job took, and why it failed."""
    begin = time.monotonic()
    answered = job(engine) and engine.drain(WAIT_SECONDS)
    seconds = time.monotonic() - begin
    errors = [completion.error for completion in engine.poll() if completion.error]
    if not engine.close(1.0):
        _LEFT_TO_THE_KERNEL.append(memory)  # which may write to it as long as this process lives
    if not answered:
        return seconds, f"no answer in {WAIT_SECONDS:.0f} s"
    return seconds, errors[0] if errors else ""


_LEFT_TO_THE_KERNEL: list[object] = []
