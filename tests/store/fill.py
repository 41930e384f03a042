"""Run by a test: one engine that stores prompts without end, until so many bytes are written.

Arguments: root, name, capacity, bytes. Loads the hot prompt between any two of its own. Prints the
counters, and how often the hot prompt's chunks were there.
"""

import json
import sys
import time

from prompts import CHUNK_BYTES, Core

HOT_CHUNKS = 8
CHUNKS = 4


def main(root: str, name: str, capacity: str, amount: str) -> None:
    core = Core(root, capacity=int(capacity), free_space_floor=2)
    core.wait_for_scan()
    asked = found = prompts = 0
    begin = time.monotonic()
    while core.engine.stats()["bytes_stored"] < int(amount):
        core.store(f"{name}/{prompts}", CHUNKS)
        prompts += 1
        asked += HOT_CHUNKS
        found += core.load("hot", HOT_CHUNKS)
        if time.monotonic() - begin > 200:
            break
    stats = core.engine.stats()
    core.engine.close()
    print(json.dumps({**stats, "asked": asked, "found": found, "chunk_bytes": CHUNK_BYTES}))


if __name__ == "__main__":
    main(*sys.argv[1:])
