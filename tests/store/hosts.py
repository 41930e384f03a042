"""Hosts of a test: processes that run host.py, on this machine or in namespaces of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class RemoteHost:
    """The test's side of one. Commands are host.py's; ``begin`` does not wait for the answer."""

    def __init__(
        self,
        root: Path,
        wrapper: Sequence[str] = (),
        user: Sequence[str] = (),
        **options: Any,
    ) -> None:
        command = [sys.executable, str(HERE / "host.py"), str(root), json.dumps(options), *user]
        self._process = subprocess.Popen(
            [*wrapper, *command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def begin(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"a host died: {self._process.communicate()[1]}")
        return json.loads(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        self.begin(command, **arguments)
        return self.answer()

    def end(self) -> None:
        """Close the engine; the process is killed if that takes long."""
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextmanager
def hosts(*started: RemoteHost) -> Iterator[Sequence[RemoteHost]]:
    """Waits until all engines run; ends them all."""
    try:
        for host in started:
            assert host.answer() == "ready"
        yield started
    finally:
        for host in started:
            host.end()
