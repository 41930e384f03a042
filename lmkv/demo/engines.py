"""Starts, watches and stops one engine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from enum import Enum
from pathlib import Path

import httpx

from lmkv.demo import http, keeper, launch
from lmkv.demo.errors import DemoError
from lmkv.demo.launch import EngineSpec

LOG_LINES = 15
_STOP_S = keeper.GRACE_S + 20

# What an engine is doing, told by the newest of these in its log. For people: a vLLM that words
# its log differently only leaves the display less precise.
_STAGES = (
    ("Available routes are", "opening its port"),
    ("init engine (profile", "nearly ready"),
    ("Warming up model", "compiling and warming up"),
    ("Starting to load model", "loading the model"),
    ("Initializing a V1 LLM engine", "starting the engine core"),
    ("Resolved architecture", "reading the model's configuration"),
)


class State(Enum):
    """Where an engine is in its life."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"
    STOPPING = "stopping"
    STOPPED = "stopped"


class EngineProcess:
    """One vLLM OpenAI server as a subprocess, with everything it starts.

    The process between is a keeper (see `keeper.py`): whatever ends this Python process, the
    engine's processes end too. Not thread-safe; use each object from one thread at a time.
    """

    def __init__(self, spec: EngineSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.state = State.NEW
        self.ready_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._told_to_stop = 0.0

    @property
    def pid(self) -> int | None:
        """The keeper's process id, the ancestor of the engine's processes."""
        return self._process.pid if self._process else None

    @property
    def elapsed_s(self) -> float:
        """Seconds to readiness, or since the start while there is none; how long it is stopping."""
        if self.state is State.STOPPING:
            return time.monotonic() - self._told_to_stop
        return self.ready_s or (time.monotonic() - self._started if self._started else 0.0)

    def start(self) -> None:
        """Starts the engine and returns at once; `poll` says when it is ready."""
        work = self.log.parent
        work.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        words = [sys.executable, "-m", "lmkv.demo.keeper", "--", *launch.command(self.spec)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=launch.environment(self.spec),
                cwd=work,
                start_new_session=True,
            )
        self.state = State.STARTING

    def poll(self) -> State:
        """The state now; asks the engine for its health while it starts. Blocks 2 s at most.

        Kills the keeper of an engine that is stopping when that takes too long.
        Raises `DemoError` with the last log lines, once, when the engine died by itself.
        """
        if self.state in (State.STARTING, State.READY):
            assert self._process is not None
            status = self._process.poll()
            if status is not None:
                self.state = State.DEAD
                raise self._death(status)
            if self.state is State.STARTING and self._healthy():
                self.state = State.READY
                self.ready_s = time.monotonic() - self._started
        elif self.state is State.STOPPING:
            assert self._process is not None
            if self._process.poll() is not None:
                self.state = State.STOPPED
            elif time.monotonic() - self._told_to_stop > _STOP_S:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
        return self.state

    def stage(self) -> str:
        """What a starting engine is doing, in words."""
        text = self._log_end(64_000)
        for mark, words in _STAGES:
            if mark in text:
                return words
        return "importing vLLM"

    def last_lines(self, count: int = LOG_LINES) -> str:
        """The end of the engine's log."""
        lines = [
            line.rstrip()
            for line in self._log_end(64_000).splitlines()
            if line.strip(" ^~")  # nothing but marks under the line before
        ]
        return "\n".join(deque(lines, maxlen=count))

    def request_stop(self) -> None:
        """Tells the keeper to end the engine and returns at once; `poll` says when it has."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self.state in (State.STARTING, State.READY):
            self.state = State.STOPPING
            self._told_to_stop = time.monotonic()
        elif self.state is State.NEW:
            self.state = State.STOPPED

    def stop(self) -> None:
        """Ends the engine and everything it started; returns when nothing is left."""
        self.request_stop()
        while self.poll() is State.STOPPING:
            time.sleep(0.05)

    def _healthy(self) -> bool:
        try:
            health = http.client().get(f"{self.spec.base_url}/health", timeout=2.0)
        except httpx.HTTPError:
            return False
        return health.status_code == httpx.codes.OK

    def _log_end(self, size: int) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _death(self, status: int) -> DemoError:
        number = -status if status < 0 else status - 128  # the keeper's own, or the engine's
        how = f"signal {number}" if number > 0 else f"exit status {status}"
        when = "" if self.ready_s else " before it was ready"
        return DemoError(
            f"engine {self.spec.name} died{when} ({how})",
            hint=explain(self._log_end(64_000)),
            log=self.last_lines(),
        )


# (pattern in the log of a dead engine, what to do). The first that matches is shown.
_CAUSES = (
    (
        r"ModuleNotFoundError: No module named 'lmkv\._C'|lmkv/_C\S*: undefined symbol",
        "lmkv's C++ core is not built: `make build`, or `pip install -e .` in the checkout",
    ),
    (
        r"address already in use|Address already in use",
        "another process took the port; run again, or choose another with --port",
    ),
    (
        (
            r"is not a local folder and is not a valid model identifier|RepositoryNotFound"
            r"|Repository Not Found|Invalid repository ID|Repo id must"
        ),
        "the model was not found: give --model a Hugging Face name or a folder with config.json",
    ),
    (
        r"GatedRepoError|Access to model .* is restricted",
        "the model needs permission: accept its terms at huggingface.co and set HF_TOKEN",
    ),
    (
        r"LocalEntryNotFoundError|couldn't connect to 'https://huggingface\.co'|OfflineModeIsEnabled",
        "the model could not be downloaded: name one that is on this machine with --model",
    ),
    (
        r"max_model_len .* is greater than the derived max_model_len",
        "the model's context is short: choose a --model that takes 4,096 tokens or more",
    ),
    (
        r"died unexpectedly \(exit code: -9\)",
        "the machine probably ran out of memory: start fewer engines with --engines",
    ),
    (
        r"CUDA out of memory|Free memory on device .* is less than desired",
        "the GPU's memory is taken: stop what uses it, or give a smaller --model",
    ),
    (
        r"Could not load this library: \S*torch(vision|audio|codec)",
        (
            "a package built for another torch is in the way: "
            "`pip uninstall torchvision torchaudio torchcodec`"
        ),
    ),
)


def explain(log: str) -> str:
    """What to do about the death of an engine with this log; empty when the log is no help."""
    for pattern, advice in _CAUSES:
        if re.search(pattern, log):
            return advice
    return ""
