"""``lmkv stats``, ``ls``, ``verify`` and ``gc``: what is in a directory, and its upkeep.

They need no engine, and engines may use the directory meanwhile.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from lmkv.cli import arenas
from lmkv.cli.text import age_text, one_line_errors, shown, size_text
from lmkv.errors import ConfigError
from lmkv.values import parse_age, parse_size

if TYPE_CHECKING:
    from lmkv._C import TreeFile
    from lmkv.tree import Checked, Summary, Verification
    from lmkv.tree_cleanup import Cleaned

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="One of those that engines are given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Namespace = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of this one only: its 16 hex digits, as stats shows them."),
]

INCOMPLETE = "Something could not be read: there may be more."


def stats(
    directory: Directory,
    arena_directory: arenas.ArenaDirectory = arenas.DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Say which namespaces are in DIR, what they are made of, how much there is and how old; and
    what engines of this user share in this host's memory.

    Exit status 1 if something could not be read.
    """
    from lmkv.tree import summarize

    with one_line_errors():
        found = summarize(str(directory.expanduser()))
    in_memory = arenas.find(arena_directory)
    if as_json:
        said = _summary_json(found) | {"arenas": [arenas.arena_json(one) for one in in_memory]}
        typer.echo(json.dumps(said, indent=2))
    else:
        _print_summary(found, Console())
        arenas.print_arenas(in_memory, Console())
    complete = found.complete and not any(one.error for one in in_memory)
    raise typer.Exit(0 if complete else 1)


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


def _print_summary(found: Summary, console: Console) -> None:
    table = Table(title=escape(found.root), title_justify="left")
    for column in ("Namespace", "Model", "dtype"):
        table.add_column(column)
    for column in ("Ranks", "Chunks", "Tokens", "Size"):
        table.add_column(column, justify="right")
    table.add_column("Last used")
    now = time.time()
    for one in found.namespaces:
        table.add_row(
            one.name,
            escape(shown(one.model) or "?"),
            escape(shown(one.fact("dtype")) or "?"),
            str(len(one.ranks)),
            f"{one.chunks:,}",
            f"{one.tokens:,}",
            size_text(one.bytes),
            f"{age_text(now - one.newest)} to {age_text(now - one.oldest)} ago",
        )
    console.print(table)
    console.print(
        f"{size_text(found.bytes)} in all; {found.being_written} files being written, "
        f"{found.abandoned} left half written (engines remove them after an hour)",
        highlight=False,
    )
    if not found.complete:
        console.print(f"[yellow]{INCOMPLETE}[/]")


def ls(
    directory: Directory,
    namespace: Namespace = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """List chunks, a line each, in no order: namespace, rank, key, bytes, when it was last used.

    Exit status 1 if something could not be read.
    """
    from lmkv._C import scan_tree
    from lmkv.tree import check_namespace

    def show(file: TreeFile) -> None:
        if file.key and namespace in {None, file.namespace}:
            typer.echo(_line_json(file) if as_json else _line(file))

    root = str(directory.expanduser())
    with one_line_errors():
        next(Path(root).iterdir(), None)
        if namespace is not None:
            check_namespace(root, namespace)
        complete = scan_tree(root, show)
    if not complete:
        typer.echo(INCOMPLETE, err=True)
        raise typer.Exit(1)


def _line(file: TreeFile) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.modified_ns / 1e9))
    return f"{file.namespace}  r{file.rank}  {file.key.hex()}  {file.bytes:>12}  {when}"


def _line_json(file: TreeFile) -> str:
    row = {
        "namespace": file.namespace,
        "rank": file.rank,
        "key": file.key.hex(),
        "bytes": file.bytes,
        "used": file.modified_ns / 1e9,
    }
    return json.dumps(row)


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

    root = str(directory.expanduser())
    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with one_line_errors():
        total = sum(one.bytes for one in tree.summarize(root).namespaces)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("verify", total=total)
            found = tree.verify(
                root,
                delete=delete,
                threads=threads,
                progress=lambda size: progress.advance(task, size),
            )
    if as_json:
        typer.echo(json.dumps(_verification_json(found), indent=2))
    else:
        _print_verification(found)
    raise typer.Exit(0 if found.clean else 1)


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
        "removed": one.gone,
        "error": one.error,
    }


def _print_verification(found: Verification) -> None:
    for one in (*found.bad, *found.unreadable):
        file, key = one.file, one.file.key.hex()
        what = f"v1/{file.namespace}/r{file.rank}/{key[:3]}/{key}.kv: {one.inspection.text}"
        if one.gone:
            what += ", removed"
        elif one.error:
            what += f", not removed: {one.error}"
        typer.echo(what)
    typer.echo(
        f"{found.sound} sound chunks ({size_text(found.bytes)}), {len(found.bad)} bad, "
        f"{len(found.unreadable)} unreadable, {found.abandoned} left half written by dead engines"
    )
    if not found.complete:
        typer.echo(INCOMPLETE)


def gc(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="One of those that engines are given."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Until DIR has no more, as in 100GiB.")
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="AGE", help="What was not used for so long, as in 7d.")
    ] = None,
    namespace: Namespace = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Nothing of DIR, but host memory that engines shared: give it back."
        ),
    ] = False,
    arena_directory: arenas.ArenaDirectory = arenas.DEFAULT_DIRECTORY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove chunks, the longest unused first, and what dead writers left half written.

    With --namespace alone, all of that namespace; --to is what all of DIR may have, other
    namespaces included. What was used in the last seconds stays. Engines may run meanwhile: they
    miss what is gone. With --memory: the memory that engines of this user shared on this host and
    that none uses any more; files stay. Exit status 1 if something could not be read or removed.
    """
    from lmkv.tree import check_namespace
    from lmkv.tree_cleanup import clean

    with one_line_errors():
        of_files = (directory, to, older, namespace)
        if memory and any(one is not None for one in of_files):
            raise ConfigError("--memory has no use for DIR, --to, --older and --namespace")
        if memory:
            whole = arenas.give_back(arena_directory, dry_run=dry_run, as_json=as_json)
            raise typer.Exit(0 if whole else 1)
        if directory is None:
            raise ConfigError("name a directory, or say --memory")
        root = str(directory.expanduser())
        if to is None and older is None and namespace is None:
            raise ConfigError("say what is to go: --to SIZE, --older AGE or --namespace NAME")
        found = clean(
            root,
            to_bytes=None if to is None else parse_size(to),
            older_than=None if older is None else parse_age(older),
            namespace=None if namespace is None else check_namespace(root, namespace),
            dry_run=dry_run,
        )
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"dry_run": dry_run}, indent=2))
    else:
        _print_cleaned(found, dry_run)
    raise typer.Exit(0 if found.complete and not found.failed else 1)


def _print_cleaned(found: Cleaned, dry_run: bool) -> None:
    gone, stay = ("would be removed", "would stay") if dry_run else ("removed", "stay")
    typer.echo(
        f"{found.chunks} chunks ({size_text(found.bytes)}) and {found.abandoned} half written "
        f"files {gone}; {size_text(found.left_bytes)} {stay}"
    )
    for line in found.failed:
        typer.echo(f"not removed: {line}")
    if not found.complete:
        typer.echo(INCOMPLETE)
