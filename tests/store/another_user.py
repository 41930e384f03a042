"""Run by a test as root: becomes another user, then works with a tree. Prints JSON.

Arguments: user id, task, root. Everything is imported before: the user may not read this clone.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import lmkv.tree
import lmkv.tree_cleanup  # noqa: F401
from lmkv.cli import app

sys.path.insert(0, str(Path(__file__).parent))
from hostile import engine


def with_an_engine(root: Path) -> dict[str, Any]:
    with engine(root) as one:
        came = one.load(2, 3, 4, 5)
        mixed = one.load(1, 2, 6)
        stored = one.store(2)
        deadline = time.monotonic() + 10
        while one.stats()["chunks_touched"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        return {"came": came, "mixed": mixed, "stored": stored, **one.stats()}


def with_tools(root: Path) -> list[Any]:
    said = []
    for arguments in (("stats",), ("verify",), ("verify", "--delete")):
        result = CliRunner().invoke(app, [arguments[0], str(root), *arguments[1:], "--json"])
        said.append([result.exit_code, json.loads(result.stdout)])
    return said


TASKS = {"engine": with_an_engine, "tools": with_tools}


def main(user: str, task: str, root: str) -> None:
    CliRunner().invoke(app, ["stats", "/nonexistent"])  # which imports what it needs
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    print(json.dumps(TASKS[task](Path(root))))


if __name__ == "__main__":
    main(*sys.argv[1:])
