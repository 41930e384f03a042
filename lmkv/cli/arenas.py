"""Arenas for people: what ``lmkv stats`` shows of them, and ``lmkv gc --memory``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmkv.cli.text import size_text
from lmkv.config import Config

if TYPE_CHECKING:
    from lmkv.arenas import Arena, Removed

DEFAULT_DIRECTORY = Path(Config(path=("/",)).arena_directory)

ArenaDirectory = Annotated[
    Path,
    typer.Option(
        metavar="DIR", envvar="LMKV_ARENA_DIRECTORY", help="Where engines share host memory."
    ),
]


def find(directory: Path) -> list[Arena]:
    from lmkv import arenas

    return arenas.find(os.path.abspath(directory.expanduser()))


def arena_json(arena: Arena) -> dict[str, Any]:
    said = {"path": arena.path, "slab_bytes": arena.name.slab_bytes}
    said |= {"file_mode": arena.name.file_mode, "error": arena.error}
    report = arena.report
    if report is None:
        return said
    slots = report.slots
    return said | {
        "bytes": report.bytes,
        "bytes_taken": report.bytes_taken,
        "slots": slots.total,
        "ready": slots.ready,
        "held": slots.held,
        "filling": slots.filling,
        "orphaned": slots.orphaned,
        "engines": [{"pid": one.pid, "alive": one.is_alive} for one in report.members],
        "repairs": report.repairs,
        "fault": report.fault,
    }


def print_arenas(found: Sequence[Arena], console: Console) -> None:
    """Nothing where there is none."""
    if not found:
        return
    title = f"Host memory that engines share, in {os.path.dirname(found[0].path)}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("Arena", overflow="fold")
    for column in ("Size", "Taken", "Ready", "Held", "Filling", "Orphaned", "Engines"):
        table.add_column(column, justify="right")
    for arena in found:
        if (report := arena.report) is None:
            continue
        slots = report.slots
        table.add_row(
            os.path.basename(arena.path),
            size_text(report.bytes),
            size_text(report.bytes_taken),
            *(f"{n:,}" for n in (slots.ready, slots.held, slots.filling, slots.orphaned)),
            _engines(arena),
        )
    if table.row_count:
        console.print(table)
    for line in [line for arena in found for line in _remarks(arena)]:
        console.print(escape(line), soft_wrap=True, highlight=False)


def _engines(arena: Arena) -> str:
    return f"{arena.engines}, {arena.dead} dead" if arena.dead else f"{arena.engines}"


def _remarks(arena: Arena) -> list[str]:
    report = arena.report
    if report is None:
        return [f"{arena.path} cannot be read: {arena.error}"]
    said = []
    if not arena.engines:
        said.append(f"{arena.path}: nobody uses it; lmkv gc --memory gives its memory back")
    if report.repairs:
        said.append(
            f"{arena.path}: repairs after engines that died in the middle of a change: "
            f"{report.repairs}"
        )
    if report.fault:
        said.append(f"{arena.path} is not as it must be: {report.fault}")
    return said


def give_back(directory: Path, *, dry_run: bool, as_json: bool) -> bool:
    """Take all arenas away, and say what became of them; whether none was left."""
    from lmkv import arenas

    done = [arenas.remove(arena, dry_run=dry_run) for arena in find(directory)]
    if as_json:
        said = {"arenas": [asdict(one) for one in done], "bytes": sum(one.bytes for one in done)}
        typer.echo(json.dumps(said | {"dry_run": dry_run}, indent=2))
    else:
        for one in done:
            typer.echo(_line(one, dry_run))
        if not done:
            typer.echo(f"no arena of this user in {directory}")
    return not any(one.error for one in done)


def _line(one: Removed, dry_run: bool) -> str:
    if one.error:
        return f"{one.path}: left as it is: {one.error}"
    what = "would be removed" if dry_run else "removed"
    return f"{one.path}: {what}, {size_text(one.bytes)} given back"
