"""A compose service as a plain process: the same words, environment and health check.

What the container would bring is mapped: its paths to folders, its ports to free ones, the names of
other services to addresses on this machine. Nothing listens but on loopback.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import compose
import pytest

# The environment of the tests holds what the image would: `lmkv`, `python3`, vLLM.
IMAGE_PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalService:
    """One service, as a context manager: started on entry, stopped as Docker stops it on exit.

    `paths`: path in the container -> folder here. `others`: service -> its port here.
    """

    def __init__(
        self,
        name: str,
        service: compose.Service,
        paths: Mapping[str, Path],
        log: Path,
        others: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        self._service = service
        self._paths = paths
        self._others = others or {}
        self._log = log
        self._inside = compose.published(service)[2]
        self._environment = self._base() | {
            variable: self._here(value) for variable, value in service["environment"].items()
        }

    @staticmethod
    def _base() -> dict[str, str]:
        """What the image's ENV would be, and what this machine says of its BLAS."""
        kept = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
        return {"PATH": IMAGE_PATH, **kept}

    def _here(self, text: str) -> str:
        # In one pass: a folder here may well lie below a path that is mapped itself.
        known = "|".join(map(re.escape, self._paths))
        text = re.sub(
            rf"(?<![\w/])({known})(?![\w-])", lambda found: str(self._paths[found[1]]), text
        )
        for other, port in self._others.items():
            text = text.replace(f"//{other}:8000", f"//127.0.0.1:{port}")
        text = re.sub(rf"(?<!\d){self._inside}(?!\d)", str(self.port), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def __enter__(self) -> Self:
        words = [self._here(word) for word in compose.command(self._service)]
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                words,
                executable=shutil.which(words[0], path=IMAGE_PATH),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                cwd=self._paths["/tmp"],
                start_new_session=True,
            )
        return self

    def wait_until_healthy(self, within_s: float = 300) -> None:
        """Runs the health check as Docker does, until it succeeds."""
        check = [self._here(word) for word in compose.health_command(self._service)]
        program = shutil.which(check[0], path=IMAGE_PATH)
        deadline = time.monotonic() + within_s
        while subprocess.run(
            check, executable=program, env=self._environment, capture_output=True, check=False
        ).returncode:
            if self._process.poll() is not None:
                pytest.fail(f"{self.name} ended ({self._process.returncode}):\n{self.log[-4000:]}")
            if time.monotonic() > deadline:
                pytest.fail(f"{self.name} is not healthy:\n{self.log[-4000:]}")
            time.sleep(1)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        """As `docker compose stop`: fails unless the service ends within its grace period."""
        grace = {"1m": 60, "": 10}[self._service.get("stop_grace_period", "")]
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} does not end within {grace} s:\n{self.log[-4000:]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._process.poll() is None:
                self.stop()
        finally:
            # The whole session: the container's end would end its other processes too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
