"""Run by a test with another interpreter: stores blocks in one Engine, loads them in another.

Takes the directory, prints JSON: where lmkv came from, and what happened.
"""

import ctypes
import json
import random
import sys
import time

from lmkv import _C

BLOCKS, BLOCK_BYTES, NAMESPACE, KEY = 8, 12_000, bytes(range(32)), bytes(range(100, 132))
STORED, LOADED = [0, 3, 5, 6], [7, 1, 2, 0]


def engine_over(memory: ctypes.Array[ctypes.c_char], root: str) -> _C.Engine:
    segments = [(ctypes.addressof(memory), BLOCK_BYTES, BLOCK_BYTES)]
    return _C.Engine(
        _C.EngineOptions(
            root=root, namespace=NAMESPACE, rank=0, segments=segments, block_count=BLOCKS,
            block_tokens=16, blocks_per_chunk=len(STORED), host_memory=8 << 20,
        )
    )  # fmt: skip


def errors_of(engine: _C.Engine, events: int) -> list[str]:
    assert engine.drain(30)
    completions: list[_C.Completion] = []
    deadline = time.monotonic() + 30
    while len(completions) < events and time.monotonic() < deadline:
        completions += engine.poll()
    return [completion.error for completion in completions]


def blocks_of(memory: ctypes.Array[ctypes.c_char], ids: list[int]) -> list[bytes]:
    return [memory.raw[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in ids]


def main(root: str) -> None:
    source = ctypes.create_string_buffer(
        random.Random(3).randbytes(BLOCKS * BLOCK_BYTES), BLOCKS * BLOCK_BYTES
    )
    target = ctypes.create_string_buffer(BLOCKS * BLOCK_BYTES)

    writer = engine_over(source, root)
    assert writer.store(KEY, 0, STORED)
    store_errors = errors_of(writer, 2)
    writer.close()

    found = _C.Directory(root=root, namespace=NAMESPACE, ranks=1).lookup([KEY])
    reader = engine_over(target, root)
    reader.load([(KEY, 0, len(STORED), 0, LOADED)])
    load_errors = errors_of(reader, 1)
    untouched = sorted(set(range(BLOCKS)) - set(LOADED))
    result = {
        "core": _C.__file__,
        "io_engine": reader.info()["io_engine"],
        "store_errors": store_errors,
        "load_errors": load_errors,
        "found": found,
        "equal": blocks_of(target, LOADED) == blocks_of(source, STORED),
        "others_untouched": not any(map(any, blocks_of(target, untouched))),
    }
    reader.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
