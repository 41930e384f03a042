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
from typing import Any


def parser_of(description: str, *, path: str = "") -> argparse.ArgumentParser:
    """A parser with ``--json``, and with ``--path`` if there is a help text for it."""
    parser = argparse.ArgumentParser(description=description)
    if path:
        parser.add_argument("--path", type=Path, required=True, help=path)
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


@contextlib.contextmanager
def prints_on_standard_error() -> Iterator[None]:
    """VLLM and its libraries print on standard output, which is for the results.

    All that this process and its children print goes to standard error while this lasts.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_result(result: dict[str, Any], where: str) -> None:
    """As JSON into the file that ``--json`` names."""
    text = json.dumps(result, indent=2) + "\n"
    if where == "-":
        sys.stdout.write(text)
    elif where:
        Path(where).write_text(text, encoding="utf-8")
