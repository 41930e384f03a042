"""A host of test_namespaces.py: URL, options, directory, what to do; prints JSON when it has."""

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from remote_hosts import BLOCK_BYTES, BLOCKS, PER_CHUNK, Host

from lmkv.remote.store import Place

CHUNKS = 6
CONTENT = random.Random(1).randbytes(BLOCKS * BLOCK_BYTES)


def main(url: str, options: str, root: str, what: str) -> None:
    place = Place.parse(url, json.loads(options))
    with Host(Path(root), place, CONTENT if what == "store" else b"", load_timeout=2.0) as host:
        host.wait_until_connected()
        if what == "store":
            print(json.dumps([host.store(n) for n in range(CHUNKS)]), flush=True)
            return
        for _ in sys.stdin:
            begin = time.monotonic()
            done = host.load(*range(CHUNKS))
            size = CHUNKS * PER_CHUNK * BLOCK_BYTES
            answer = {
                "failed": done.failed_chunks,
                "remote": done.remote_chunks,
                "right": host.memory.raw[:size] == CONTENT[:size],
                "seconds": time.monotonic() - begin,
                "out": host.engine.roots_out_of_service(),
                "slabs_in_use": host.stat("slabs_in_use"),
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
