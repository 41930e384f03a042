"""An engine in a process of its own, which a test tells what to do: one line of JSON after another.

Arguments: the directory, the engine's options as JSON, and a user and a group to become (or "" for
neither). Answers each line with one. A chunk's bytes follow from its name, so that whoever loads it
knows what they must be.
"""

import ctypes
import hashlib
import json
import os
import random
import socket
import sys
import time
from typing import Any

from lmkv import _C
from lmkv.namespace import Namespace

BLOCK_BYTES = 16 << 10
PER_CHUNK = 4
TOKENS = 16
CHUNK_BYTES = 4096 + PER_CHUNK * BLOCK_BYTES
SOURCE, TARGET = [0, 1, 2, 3], [7, 5, 4, 6]


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def content(name: str) -> bytes:
    return random.Random(name).randbytes(PER_CHUNK * BLOCK_BYTES)


class Host:
    """What a test may ask for: each method is a command."""

    def __init__(self, root: str, options: dict[str, Any]) -> None:
        self.root = root
        namespace = Namespace({"model": options.pop("model", "m")})
        self.memory = ctypes.create_string_buffer(8 * BLOCK_BYTES)
        options = {
            "host_memory": 4 * CHUNK_BYTES, "free_space_floor": 0.0,
            "blocks_per_chunk": PER_CHUNK, **options,
        }  # fmt: skip
        self.engine = _C.Engine(
            _C.EngineOptions(
                root=root, namespace=namespace.digest, rank=0, block_count=8, block_tokens=TOKENS,
                segments=[(ctypes.addressof(self.memory), BLOCK_BYTES, BLOCK_BYTES)], **options,
            )
        )  # fmt: skip
        error = namespace.write_meta(root, file_mode=options.get("file_mode", "private"))
        assert error is None, error
        self.directory = _C.Directory(root=root, namespace=namespace.digest, ranks=1)

    def _run(self) -> list[_C.Completion]:
        assert self.engine.drain(60)
        return self.engine.poll()

    def store(self, names: list[str], salt: str = "") -> list[str]:
        """What went wrong with each, or "". With a ``salt`` the bytes are others."""
        errors = []
        for name in names:
            ctypes.memmove(self.memory, content(name + salt), PER_CHUNK * BLOCK_BYTES)
            job = self.engine.store(key(name), 0, SOURCE)
            errors.append(self._run()[-1].error if job else "dropped")
        return errors

    def load(self, names: list[str], salt: str = "") -> list[str]:
        """Of each "right", "wrong", or why it was not loaded."""
        return [self._load(name, salt) for name in names]

    def _load(self, name: str, salt: str) -> str:
        self.engine.load([(key(name), 0, PER_CHUNK, 0, TARGET)])
        (done,) = self._run()
        if done.failed_chunks:
            return done.error
        blocks = [self.memory.raw[b * BLOCK_BYTES : (b + 1) * BLOCK_BYTES] for b in TARGET]
        return "right" if b"".join(blocks) == content(name + salt) else "wrong"

    def load_any(self, count: int, seconds: float) -> dict[str, int]:
        """Load chunks "0" to ``count`` at random; how many loads came to what."""
        found: dict[str, int] = {}
        chance = random.Random(os.getpid())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self._load(str(chance.randrange(count)), "").split(":")[0]
            found[answer] = found.get(answer, 0) + 1
        return found

    def store_for(self, seconds: float, count: int) -> list[str]:
        """Store chunks "0" to ``count`` again and again; what went wrong."""
        end = time.monotonic() + seconds
        wrong: set[str] = set()
        while time.monotonic() < end:
            for number in range(count):
                wrong |= {error for error in self.store([str(number)]) if error}
        return sorted(wrong)

    def evict_for(self, seconds: float) -> int:
        """Evict chunks as they are found, half of them, without sparing any; how many."""
        end = time.monotonic() + seconds
        chance = random.Random(os.getpid())
        evicted = 0
        while time.monotonic() < end:
            files: list[_C.TreeFile] = []
            assert _C.scan_tree(self.root, files.append)
            for file in files:
                if file.key and chance.random() < 0.5:
                    evicted += _C.remove_chunk(self.root, file) is _C.Removal.REMOVED
        return evicted

    def present(self, names: list[str]) -> list[bool]:
        return self.directory.present([key(name) for name in names])

    def wait_for(self, counter: str, at_least: int) -> int:
        deadline = time.monotonic() + 30
        while (value := self.engine.stats()[counter]) < at_least:
            assert time.monotonic() < deadline, (counter, value)
            time.sleep(0.01)
        return value

    def stats(self) -> dict[str, int]:
        return self.engine.stats()

    def info(self) -> dict[str, str]:
        return self.engine.info()

    def who(self) -> list[Any]:
        return [socket.gethostname(), os.getpid(), os.geteuid(), os.getegid()]

    def umask(self, mask: int) -> None:
        os.umask(mask)


def main(root: str, options: str, user: str = "", group: str = "", mask: str = "") -> None:
    if group:
        os.setgroups([])
        os.setgid(int(group))
        os.setuid(int(user))
    if mask:
        os.umask(int(mask, 8))
    host = Host(root, json.loads(options))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, arguments = json.loads(line)
        print(json.dumps(getattr(host, command)(**arguments)), flush=True)
    host.engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
