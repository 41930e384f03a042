"""The command `lmkv`: one small module a subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

from lmkv._version import __version__
from lmkv.cli import bench, demo, doctor, explain, serve, tree

app = typer.Typer(
    name="lmkv",
    help="An SSD, or a directory that several machines share, as vLLM's prefix cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lmkv {__version__}")
        raise typer.Exit


@app.callback()
def lmkv(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


app.add_typer(bench.app, name="bench")
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
for command in (tree.stats, tree.ls, tree.verify, tree.gc):
    app.command(command.__name__)(command)
app.command("explain")(explain.explain)
app.command("serve", context_settings=serve.CONTEXT)(serve.serve)
