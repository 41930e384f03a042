"""Runs the programs of ``benchmarks``, and ``lmkv bench``, as somebody who measures does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LMKV = ("-c", "from lmkv.cli import app; app()", "bench")


def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """By this Python, with what this one imports."""
    path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path} | variables,
    )  # fmt: skip


def result_of(name: str, path: Path, *words: str) -> Any:
    """The JSON of ``benchmarks/NAME`` over the empty directory ``path``, which is empty again."""
    done = run(BENCHMARKS / name, "--path", path, *words, "--json", "-")
    assert done.returncode == 0, done.stderr[-4000:]
    assert list(path.iterdir()) == []
    return json.loads(done.stdout)
