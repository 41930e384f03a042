"""A command of which nothing is left when it is over, whichever way it comes to that."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import psutil

PR_SET_CHILD_SUBREAPER = 36  # prctl(2): what a command leaves behind is then this process's child
END_SECONDS = 40.0  # more than engines are given
KILLS = 10  # while there is something that starts others


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as SIGINT does: what stands behind `finally` is done."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    # nohup has SIGHUP ignored. A shell has what it puts in the background ignore SIGINT, and so
    # would all that is started here, if it were not for this.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(command: Sequence[str], *, output: BinaryIO, cwd: Path, timeout: float) -> int:
    """Its exit status. Caller: the main thread.

    When ``timeout`` seconds are over (subprocess.TimeoutExpired), or this process is to end, it
    gets SIGINT, upon which benchmarks remove what they have made, and time for that. Whatever it
    has started and not ended, in whatever session, is killed in any case.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    others = _descendants()
    with _signals_raise():
        try:
            # In a session of its own: Ctrl-C is for this process, which passes it on.
            process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=cwd, start_new_session=True
            )
            try:
                return process.wait(timeout)
            except BaseException:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS)
                raise
        finally:
            for _ in range(KILLS):
                left = _descendants() - others
                if not left:
                    break
                for one in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(left, timeout=1.0)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))
