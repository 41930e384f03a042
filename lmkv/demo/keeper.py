"""Runs one engine and outlives nobody: `python -m lmkv.demo.keeper -- COMMAND...`.

A vLLM server is a family of processes, and killing its first one leaves the rest running (seen
with vLLM 0.32: EngineCore and its worker go on after `kill -9` of the API server). The keeper is
the ancestor that ends them all:

- its standard input is a pipe whose other end only the demo holds. End of file means that the
  demo is gone, even by `kill -9`, or asks for a stop;
- it is a subreaper (prctl(2)), so descendants whose parent died become its children, whatever
  session or process group they made for themselves, and it ends when none is left;
- should the keeper itself be killed, the engine's first process gets SIGKILL (PDEATHSIG).

It imports little: it has to be there before the engine and costs memory beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Runs the command until it ends or standard input does; returns its exit status."""
    command = arguments[arguments.index("--") + 1 :]
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop = _stop_pipe()
    engine = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # Safe: this process has one thread.
        preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509
    )
    try:
        while engine.poll() is None:
            ready, _, _ = select.select([sys.stdin.fileno(), stop], [], [], 0.5)
            if ready:
                break
    finally:
        _end_descendants(engine)
    status = engine.returncode
    return status if status >= 0 else 128 - status  # as a shell reports a signal


def _stop_pipe() -> int:
    """A descriptor that becomes readable at SIGTERM, SIGINT or SIGHUP."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wake(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"x")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, wake)
    return reader


def _end_descendants(engine: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the engine, which tells its own children; SIGKILL to whatever is left."""
    if engine.poll() is None:
        engine.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(GRACE_S)
    _signal_descendants(signal.SIGTERM, patience_s=1.0)
    # Python's resource trackers end by themselves when the others have, and remove the shared
    # memory that those left behind.
    _signal_descendants(signal.SIGKILL, patience_s=5.0, spare="multiprocessing.resource_tracker")
    _signal_descendants(signal.SIGKILL, patience_s=10.0)
    engine.wait()


def _signal_descendants(number: int, patience_s: float, spare: str = "") -> None:
    """Signals every descendant, those that appear meanwhile too; reaps what died.

    Processes with `spare` in their command line are waited for, and not signalled.
    """
    deadline = time.monotonic() + patience_s
    me = psutil.Process()
    while (left := me.children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not spare or spare not in " ".join(process.cmdline()):
                    process.send_signal(number)
        psutil.wait_procs(left, timeout=0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
