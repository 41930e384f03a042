"""``benchmarks/processes.py``: real processes that leave others behind; none of them stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from programs import BENCHMARKS

# Starts one that is in another session and heeds no signal, says both numbers, and does as it is
# told; upon SIGINT it has something to remove.
COMMAND = """
import pathlib, subprocess, sys, time
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
made = folder / "made"
made.touch()
ignoring = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; print()"
child = subprocess.Popen(
    [sys.executable, "-c", ignoring + "; time.sleep(600)"],
    start_new_session=True, stdout=subprocess.PIPE,
)
child.stdout.readline()
(folder / "part").write_text(str(child.pid))
(folder / "part").rename(folder / "pid")
try:
    time.sleep(600 if what == "stays" else 0)
finally:
    made.unlink()
sys.exit(3)
"""
RUNNER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import processes
with open("/dev/null", "wb") as output:
    command = [sys.executable, "-c", sys.argv[2], sys.argv[3], sys.argv[4]]
    timeout = float(sys.argv[5])
    sys.exit(processes.run(command, output=output, cwd=pathlib.Path("/"), timeout=timeout))
"""


def started(folder: Path, what: str, timeout: float = 600) -> subprocess.Popen[bytes]:
    # As a shell starts it in the background.
    return subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-c", RUNNER, BENCHMARKS,
         COMMAND, what, folder, str(timeout)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def left_behind(folder: Path) -> int:
    """The number of the process that the command has left, as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (folder / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int((folder / "pid").read_text())


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    runner = started(tmp_path, "ends")
    assert runner.wait(60) == 3
    assert not is_alive(left_behind(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_is_ended_ends_all_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("these tests run under nohup, and so does what they start")
    runner = started(tmp_path, "stays")
    pid = left_behind(tmp_path)
    assert is_alive(pid)
    os.kill(runner.pid, number)
    assert runner.wait(60) == 128 + number
    assert not is_alive(pid)
    assert not (tmp_path / "made").exists()


def test_what_takes_too_long_ends_with_all_of_it(tmp_path: Path) -> None:
    runner = started(tmp_path, "stays", timeout=5)
    assert runner.wait(60) == 1  # TimeoutExpired
    assert not is_alive(left_behind(tmp_path))
    assert not (tmp_path / "made").exists()
