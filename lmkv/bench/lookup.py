"""How long a prompt's lookup takes, and how long it holds up the scheduler, over real files.

The files are empty: a lookup is about names. It is made by the code, and with the patience, that
an engine's scheduler has: what is not known within a millisecond is asked for again a millisecond
later, as an engine does that has nothing else to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkv._C import Directory
from lmkv.errors import ConfigError
from lmkv.vllm.lookup import Lookup

CHUNKS = 512
BLOCKS_PER_CHUNK = 16
NAMESPACE = bytes(32)
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
STEP_SECONDS = 0.001  # between two steps of an engine that waits
SETTLE_SECONDS = 0.05  # the kernel goes on freeing what it was made to forget


@dataclass(slots=True)
class Times:
    """Seconds from the question to the answer, and those of the longest call on the way."""

    answers: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    def row(self, keys: int) -> dict[str, Any]:
        """Their percentiles, in microseconds; ``keys`` were asked for each time."""
        middle = statistics.median(self.answers)
        return {
            "p50_us": middle * 1e6,
            "p99_us": _percentile(self.answers, 0.99) * 1e6,
            "call_p50_us": statistics.median(self.calls) * 1e6,
            "call_p99_us": _percentile(self.calls, 0.99) * 1e6,
            "keys_per_s": keys / middle,
            "lookups": len(self.answers),
        }


class Prefixes:
    """``count`` prompts of ``chunks`` chunks each, all of them stored under ``root``."""

    def __init__(self, root: Path, count: int, chunks: int) -> None:
        self.root, self.chunks = root, chunks
        self.hashes = [list(self._hashes(f"{number}")) for number in range(count)]
        rank = root / "v1" / NAMESPACE.hex()[:16] / "r0"
        for hashes in self.hashes:
            for key in hashes[BLOCKS_PER_CHUNK - 1 :: BLOCKS_PER_CHUNK]:
                name = key.hex()
                file = rank / name[:3] / f"{name}.kv"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()

    def absent(self, count: int) -> Iterator[list[bytes]]:
        """As many prompts of which nothing is stored."""
        return (list(self._hashes(f"absent {number}")) for number in range(count))

    def _hashes(self, seed: str) -> Iterator[bytes]:
        for block in range(self.chunks * BLOCKS_PER_CHUNK):
            yield hashlib.sha256(f"{seed} {block}".encode()).digest()

    def lookup(self) -> Lookup:
        """That of an engine which has just started."""
        directory = Directory(root=str(self.root), namespace=NAMESPACE, ranks=1)
        return Lookup(directory, BLOCKS_PER_CHUNK, tails=True)


def drop_caches() -> bool:
    """Have the kernel forget names and inodes, of the whole machine; whether it did."""
    try:
        DROP_CACHES.write_text("2", encoding="ascii")
    except OSError:
        return False
    time.sleep(SETTLE_SECONDS)
    return True


def measure(path: Path, *, chunks: int = CHUNKS, prefixes: int = 40) -> dict[str, Any]:
    """Microseconds by what is known beforehand. Blocks for seconds.

    ``cold``: the engine has just started, the kernel knows the names. ``dropped``: the kernel was
    made to forget them, too; only where we may do that. ``known``: the engine has asked before.
    ``absent``: nothing is there. ``directory``: the system calls alone, in place of what ``cold``
    does. Raises ConfigError for a directory that cannot be used.
    """
    root = path / f"lmkv-bench-{os.getpid()}"
    try:
        files = Prefixes(root, prefixes, chunks)
        return _measure(files)
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror or error}") from error
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _measure(files: Prefixes) -> dict[str, Any]:
    found: dict[str, Times] = {}
    os.sync()  # what is not on the disk yet is not forgotten
    times = found["dropped"] = Times()
    for hashes in files.hashes:
        if not drop_caches():
            del found["dropped"]
            break
        _ask(files.lookup(), [hashes], files.chunks, times)
    times = found["cold"] = Times()
    for _ in range(5):
        _ask(files.lookup(), files.hashes, files.chunks, times)
    lookup = files.lookup()
    times = found["known"] = Times()
    for hashes in files.hashes:
        _ask(lookup, [hashes], files.chunks, Times())
        _ask(lookup, [hashes] * 25, files.chunks, times)
    found["absent"] = Times()
    _ask(lookup, files.absent(10 * len(files.hashes)), 0, found["absent"])

    times = found["directory"] = Times()
    directory = Directory(root=str(files.root), namespace=NAMESPACE, ranks=1)
    for _ in range(5):
        for hashes in files.hashes:
            keys = hashes[BLOCKS_PER_CHUNK - 1 :: BLOCKS_PER_CHUNK]
            begin = time.perf_counter()
            length = directory.lookup(keys)
            times.answers.append(time.perf_counter() - begin)
            _check(length, files.chunks)
    times.calls = times.answers
    return {"chunks": files.chunks} | {
        name: times.row(files.chunks) for name, times in found.items()
    }


def _ask(lookup: Lookup, prompts: Iterable[list[bytes]], chunks: int, times: Times) -> None:
    for hashes in prompts:
        longest = 0.0
        asked = time.perf_counter()
        while True:
            lookup.begin_step()
            begin = time.perf_counter()
            run = lookup.find(hashes, 0, len(hashes))
            end = time.perf_counter()
            longest = max(longest, end - begin)
            if run is not None:
                break
            time.sleep(STEP_SECONDS)
        times.answers.append(end - asked)
        times.calls.append(longest)
        _check(len(run), chunks)


def _check(found: int, chunks: int) -> None:
    if found != chunks:
        raise RuntimeError(f"{found} chunks were found, not {chunks}")


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
