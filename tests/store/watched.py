"""An engine over plain memory whose every chunk has bytes of its own, and whose calls are timed."""

import ctypes
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmkv import _C

BLOCK_BYTES = 64 << 10
PER_CHUNK = 4
TOKENS = 16
CHUNK_BYTES = 4096 + PER_CHUNK * BLOCK_BYTES
PAYLOAD = PER_CHUNK * BLOCK_BYTES
PLACES = 16  # of chunks in the KV cache: half for stores, half for loads
NAMESPACE = bytes(32)
UNTOUCHED = b"\xee"
FAN_OUT = "[0-9a-f]" * 3

# No call of the engine's thread may take as long as a disk takes to fail. They take microseconds;
# the rest is for a busy machine.
SLOWEST_CALL = 0.25


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def payload(name: str) -> bytes:
    return random.Random(name).randbytes(PAYLOAD)


def chunk_files(root: Path) -> list[Path]:
    return sorted(root.glob(f"v1/*/r*/{FAN_OUT}/*.kv"))


def file_of(root: Path, name: str) -> Path:
    """Where the chunk is, or would be."""
    digits = key(name).hex()
    return root / "v1" / NAMESPACE.hex()[:16] / "r0" / digits[:3] / f"{digits}.kv"


def temporaries(root: Path) -> list[Path]:
    """What writers left, or are writing."""
    beside = [file for file in root.glob(f"v1/*/r*/{FAN_OUT}/*") if file.suffix != ".kv"]
    return sorted(beside + list(root.glob("v1/*/r*/tmp/*")) + list(root.glob("v1/*/tmp/*")))


class WatchedCore:
    """One engine. Chunks have names, and the bytes that their names stand for."""

    def __init__(
        self, root: "Path | str", faults: "_C.Faults | None" = None, **options: Any
    ) -> None:
        self.memory = ctypes.create_string_buffer(PLACES * PAYLOAD)
        self.slowest = 0.0
        options = {"host_memory": 4 * CHUNK_BYTES, "free_space_floor": 0.0, **options}
        self.options = _C.EngineOptions(
            root=str(root), namespace=NAMESPACE, rank=0, block_tokens=TOKENS,
            segments=[(ctypes.addressof(self.memory), BLOCK_BYTES, BLOCK_BYTES)],
            block_count=PLACES * PER_CHUNK, blocks_per_chunk=PER_CHUNK, **options,
        )  # fmt: skip
        self.engine = _C.fault_engine(self.options, faults) if faults else _C.Engine(self.options)
        self._done: dict[int, _C.Completion] = {}
        self._next = 0

    # What an engine's thread calls

    def _timed(self, call: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        begin = time.monotonic()
        try:
            return call(*args, **keywords)
        finally:
            self.slowest = max(self.slowest, time.monotonic() - begin)

    def poll(self) -> None:
        for one in self._timed(self.engine.poll):
            if one.kind is not _C.CompletionKind.GATHERED:
                self._done[one.job] = one

    def stat(self, name: str) -> int:
        return int(self._timed(self.engine.stats)[name])

    def touch(self, *names: str) -> None:
        self._timed(self.engine.touch, [(key(name), 0) for name in names])

    def begin_store(self, name: str, used_at: float | None = None, token_begin: int = 0) -> int:
        """The job; 0 if it was dropped. The bytes stay until half of the places were used again."""
        place = self._next % (PLACES // 2)
        self._next += 1
        ctypes.memmove(ctypes.addressof(self.memory) + place * PAYLOAD, payload(name), PAYLOAD)
        blocks = [place * PER_CHUNK + i for i in range(PER_CHUNK)]
        job = self._timed(self.engine.store, key(name), token_begin, blocks, used_at=used_at)
        return int(job)

    def begin_load(self, *names: str) -> int:
        assert len(names) <= PLACES // 2
        first = PLACES // 2
        begin = ctypes.addressof(self.memory) + first * PAYLOAD
        ctypes.memset(begin, UNTOUCHED[0], first * PAYLOAD)
        chunks = [
            (key(name), 0, PER_CHUNK, 0, [(first + at) * PER_CHUNK + i for i in range(PER_CHUNK)])
            for at, name in enumerate(names)
        ]
        return int(self._timed(self.engine.load, chunks))

    # And what tests want to know

    def wait(self, job: int, seconds: float = 30) -> _C.Completion:
        deadline = time.monotonic() + seconds
        while job not in self._done:
            assert time.monotonic() < deadline, f"job {job} does not end"
            self.poll()
            time.sleep(0.001)
        return self._done.pop(job)

    def store(self, *names: str, seconds: float = 30) -> list[str]:
        """One by one; their errors: "" for what was stored, "dropped" for what was not accepted."""
        errors = []
        for name in names:
            job = self.begin_store(name)
            errors.append(self.wait(job, seconds).error if job else "dropped")
        return errors

    def load(self, *names: str, seconds: float = 30) -> list[str]:
        """Those that came. Whatever happens, there is no byte that is not a chunk's own."""
        came = []
        for at in range(0, len(names), PLACES // 2):
            part = names[at : at + PLACES // 2]
            came += self.check(part, self.wait(self.begin_load(*part), seconds))
        return came

    def check(self, names: "tuple[str, ...]", done: _C.Completion) -> list[str]:
        came = [name for at, name in enumerate(names) if at not in done.failed_chunks]
        assert bool(done.error) == bool(done.failed_chunks)
        for at, name in enumerate(names):
            begin = (PLACES // 2 + at) * PAYLOAD
            found = ctypes.string_at(ctypes.addressof(self.memory) + begin, PAYLOAD)
            if name in came:
                assert found == payload(name), f"{name} came with other bytes"
            else:
                assert found in {UNTOUCHED * PAYLOAD, payload(name)}, f"{name} failed with bytes"
        return came

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """Counters' increments, once it is over."""
        before = self.engine.stats()
        increments: dict[str, int] = {}
        yield increments
        after = self.engine.stats()
        increments |= {name: after[name] - before[name] for name in after}

    def wait_for_scan(self) -> None:
        deadline = time.monotonic() + 20
        while not self.stat("housekeeping_passes"):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def wait_to_store(self, prefix: str, seconds: float = 20) -> str:
        """Offer chunks until one is stored: its name."""
        deadline = time.monotonic() + seconds
        number = 0
        while True:
            name = f"{prefix}{number}"
            errors = self.store(name)
            if errors == [""]:
                return name
            assert time.monotonic() < deadline, f"stores do not resume: {errors}"
            number += 1
            time.sleep(0.05)

    def wait_to_load(self, *names: str, seconds: float = 20) -> None:
        """Ask for chunks until they come."""
        deadline = time.monotonic() + seconds
        while self.load(*names) != list(names):
            assert time.monotonic() < deadline, "loads do not resume"
            time.sleep(0.05)

    def close(self, timeout_s: float = 30.0) -> None:
        """And nothing is left over, and no call took long."""
        assert self.engine.drain(30)
        stats = self.engine.stats()
        assert stats["slabs_in_use"] == stats["jobs_in_flight"] == 0
        assert stats["slabs_free"] + stats["slabs_cached"] == stats["slabs_total"]
        assert stats["load_bytes_in_flight"] == stats["store_bytes_in_flight"] == 0
        assert self.engine.close(timeout_s)
        assert self.slowest < SLOWEST_CALL, f"a call of the engine's thread took {self.slowest} s"
