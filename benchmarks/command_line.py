"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_results: TextIO = sys.stdout


def parser_of(description: str, *, with_path: bool = True) -> argparse.ArgumentParser:
    """A parser with ``--path`` and ``--json``."""
    parser = argparse.ArgumentParser(description=description)
    if with_path:
        parser.add_argument(
            "--path", type=Path, required=True, help="a folder is made in it, and removed"
        )
    parser.add_argument("--json", default="", metavar="FILE", help='"-": to standard output')
    return parser


@contextlib.contextmanager
def folder_in(path: Path, name: str) -> Iterator[Path]:
    """A folder of this process's own in ``path``, made now and removed behind."""
    folder = path.absolute() / f"lmkv-{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_standard_output() -> None:
    """For the result: what this process and its children print from now on, as vLLM does, goes to
    standard error.
    """
    global _results  # noqa: PLW0603 - as the descriptor is one for the process
    _results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def write_result(result: dict[str, Any], where: str) -> None:
    """As JSON into the file that ``--json`` names."""
    text = json.dumps(result, indent=2) + "\n"
    if where == "-":
        _results.write(text)
        _results.flush()
    elif where:
        Path(where).write_text(text, encoding="utf-8")
