"""Forks engines that store until they are killed: one line on stdin each, their pids on stdout.

Usage: ``python writers.py``. A line is JSON: ``root``, ``seed``, and perhaps ``faults`` (a spec of
``_C.Faults``: the child then says "hangs" once an operation does), ``capacity``, ``io_engine``.
Forked from here a writer lives within milliseconds; it imports nothing any more.
"""

import json
import os
import random
import signal
import sys
import time

from watched import PLACES, WatchedCore

from lmkv import _C


def write(order: dict) -> None:
    spec = order.get("faults")
    faults = _C.Faults(spec, order["seed"]) if spec else None
    options = {name: order[name] for name in ("capacity", "io_engine") if name in order}
    core = WatchedCore(order["root"], faults, **options)
    draw = random.Random(order["seed"])
    while True:
        for _ in range(PLACES // 2):
            core.begin_store(f"chunk{draw.randrange(1 << 20)}")
        while core.stat("jobs_in_flight"):
            core.poll()
            if faults is not None and faults.hanging():
                print("hangs", flush=True)
                signal.pause()
            time.sleep(0.0005)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        known, make_known = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(make_known)
                os.read(known, 1)
                write(json.loads(line))
            finally:
                os._exit(1)
        print(pid, flush=True)
        os.close(make_known)
        os.close(known)


if __name__ == "__main__":
    main()
