"""``lmkv stats``, ``ls``, ``verify`` and ``gc``: what is in a directory, and its upkeep.

They need no engine, and engines may use the directory meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn
from rich.table import Table

from lmkv.cli.text import age_text, parse_age, size_text
from lmkv.config import parse_size
from lmkv.errors import ConfigError

if TYPE_CHECKING:
    from lmkv._C import TreeFile
    from lmkv.tree import Checked, Summary, Verification

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", envvar="LMKV_PATH", help="As engines are given it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Namespace = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of this one only: its 16 hex digits, or how they begin."),
]


@contextmanager
def _errors() -> Iterator[None]:
    """What cannot work is one line and exit status 2."""
    try:
        yield
    except (OSError, ConfigError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def stats(directory: Directory, as_json: AsJson = False) -> None:
    """Say which namespaces are in DIR, what they are made of, how much there is and how old."""
    from lmkv.tree import summarize

    with _errors():
        found = summarize(str(directory))
    if as_json:
        typer.echo(json.dumps(_summary_json(found), indent=2))
        return
    table = Table(title=str(directory), title_justify="left")
    for column in ("Namespace", "Model", "dtype", "Ranks", "Chunks", "Tokens", "Size", "Last used"):
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    now = time.time()
    for one in found.namespaces:
        table.add_row(
            one.name, one.model or "?", one.fact("dtype") or "?", str(len(one.ranks)),
            f"{one.chunks:,}", f"{one.tokens:,}", size_text(one.bytes),
            f"{age_text(now - one.newest)} to {age_text(now - one.oldest)} ago",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"{size_text(found.bytes)} in all; {found.being_written} files being written, "
        f"{found.abandoned} left half written (engines remove them after an hour)",
        highlight=False,
    )
    if not found.complete:
        console.print("[yellow]Something could not be read: there may be more.[/]")


_NUMBERS = ("Ranks", "Chunks", "Tokens", "Size")


def _summary_json(found: Summary) -> dict[str, Any]:
    return {
        "directory": found.root,
        "bytes": found.bytes,
        "being_written": found.being_written,
        "abandoned": found.abandoned,
        "complete": found.complete,
        "namespaces": [
            asdict(one) | {"model": one.model, "ranks": sorted(one.ranks)}
            for one in found.namespaces
        ],
    }


def ls(
    directory: Directory,
    namespace: Namespace = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """List chunks, a line each, in no order: namespace, rank, key, bytes, when it was last used."""
    from lmkv._C import scan_tree

    def show(file: TreeFile) -> None:
        if not file.key or not file.namespace.startswith(namespace or ""):
            return
        used = file.modified_ns / 1e9
        if as_json:
            row = {
                "namespace": file.namespace, "rank": file.rank, "key": file.key.hex(),
                "bytes": file.bytes, "used": used,
            }  # fmt: skip
            typer.echo(json.dumps(row))
            return
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(used))
        typer.echo(f"{file.namespace}  r{file.rank}  {file.key.hex()}  {file.bytes:>12}  {when}")

    with _errors():
        _must_be_readable(directory)
        if not scan_tree(str(directory), show):
            typer.echo("Something could not be read: there may be more.", err=True)


def _must_be_readable(directory: Path) -> None:
    next(directory.iterdir(), None)


def verify(
    directory: Directory,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove bad chunks, and what dead writers left.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, max=64, help="That read at once.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Read every chunk in DIR and check it as a load does.

    Exit status 1 if a bad chunk is left, or one that cannot be read.
    """
    from lmkv import tree

    with _errors():
        total = tree.summarize(str(directory)).bytes
        columns = (
            BarColumn(),
            DownloadColumn(binary_units=True),
            SpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("verify", total=total)
            found = tree.verify(
                str(directory),
                delete=delete,
                threads=threads,
                progress=lambda size: progress.advance(task, size),
            )
    if as_json:
        typer.echo(json.dumps(_verification_json(found), indent=2))
    else:
        _print_verification(found)
    left = [one for one in found.bad if not one.removed]
    raise typer.Exit(1 if left or found.unreadable or not found.complete else 0)


def _verification_json(found: Verification) -> dict[str, Any]:
    return {
        "sound": found.sound,
        "bytes": found.bytes,
        "bad": [_checked_json(one) for one in found.bad],
        "unreadable": [_checked_json(one) for one in found.unreadable],
        "abandoned": found.abandoned,
        "complete": found.complete,
    }


def _checked_json(one: Checked) -> dict[str, Any]:
    return {
        "namespace": one.file.namespace,
        "rank": one.file.rank,
        "key": one.file.key.hex(),
        "why": one.inspection.text,
        "removed": one.removed,
    }


def _print_verification(found: Verification) -> None:
    for one in (*found.bad, *found.unreadable):
        file = one.file
        place = f"v1/{file.namespace}/r{file.rank}/{file.key.hex()[:3]}/{file.key.hex()}.kv"
        typer.echo(f"{place}: {one.inspection.text}{', removed' if one.removed else ''}")
    typer.echo(
        f"{found.sound} sound chunks ({size_text(found.bytes)}), {len(found.bad)} bad, "
        f"{len(found.unreadable)} unreadable, {found.abandoned} left half written by dead engines"
    )
    if not found.complete:
        typer.echo("Something could not be read: there may be more.")


def gc(
    directory: Directory,
    to: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Until DIR has no more, as in 100GiB.")
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="AGE", help="What was not used for so long, as in 7d.")
    ] = None,
    namespace: Namespace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove chunks, the longest unused first, and what dead writers left half written.

    With --namespace alone, all of that namespace. What was used in the last seconds stays. Engines
    may run meanwhile: they miss what is gone.
    """
    from lmkv import tree

    with _errors():
        if to is None and older is None and namespace is None:
            raise ConfigError("say what is to go: --to SIZE, --older AGE or --namespace NAME")
        removal = tree.clean(
            str(directory),
            to_bytes=None if to is None else parse_size(to),
            older_than=None if older is None else parse_age(older),
            namespace=None
            if namespace is None
            else tree.namespace_named(str(directory), namespace),
            dry_run=dry_run,
        )
    if as_json:
        typer.echo(json.dumps(asdict(removal) | {"dry_run": dry_run}, indent=2))
        return
    would = "would be " if dry_run else ""
    typer.echo(
        f"{removal.chunks} chunks ({size_text(removal.bytes)}) and {removal.abandoned} half "
        f"written files {would}removed; {size_text(removal.left_bytes)} {would and 'would '}stay"
    )
