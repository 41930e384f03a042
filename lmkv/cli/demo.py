"""`lmkv demo`: real engines side by side, with and without lmkv."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from types import FrameType

ANSWERS_DIFFER = 3
INTERRUPTED = 130

_ENGINES = "plain-a,plain-b,lmkv-a,lmkv-b"


def demo(
    headless: Annotated[
        bool, typer.Option("--headless", help="Run in the terminal; this version knows no other.")
    ] = False,
    engines: Annotated[
        str, typer.Option(help="Which engines to start, separated by commas.", metavar="LIST")
    ] = _ENGINES,
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face name or folder. Default: SmolLM2-135M-Instruct on a CPU, "
            "Qwen2.5-7B-Instruct on a GPU that holds it."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where lmkv keeps KV, and leaves it. Default: a fresh folder."),
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="A text file to ask about. Default: lmkv's user guide.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about the document.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="First of the engines' ports. Default: free ones.", min=1, max=65535),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer.", min=1, max=4096)] = 48,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the engines to become ready.", min=1)
    ] = 900.0,
) -> None:
    """Ask vLLM engines with and without lmkv the same question, and compare the delays.

    Exit status: 0 when all answers are equal, 3 when they are not, 1 on failure, 2 on wrong usage,
    130 when interrupted. No engine is left running in any case.
    """
    if not headless:
        raise typer.BadParameter("this version runs in the terminal only: give --headless")
    names = _names(engines)
    # Loaded only now, so that `lmkv --help` stays fast.
    try:
        from rich.console import Console

        from lmkv.demo import document as documents
        from lmkv.demo import headless as run
        from lmkv.demo import report
        from lmkv.demo.errors import DemoError
    except ModuleNotFoundError as error:
        typer.echo(f"error: the demo needs {error.name}: pip install 'lmkv[demo]'", err=True)
        raise typer.Exit(1) from error

    settings = run.Settings(
        engines=names,
        model=model,
        directory=directory,
        document=document,
        question=question or documents.DEFAULT_QUESTION,
        json_file=json_file,
        port=port,
        max_tokens=max_tokens,
        timeout_s=timeout,
    )
    # Ask for an orderly end as Ctrl-C does, so that the engines are stopped.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        results = run.run(settings, Console())
    except ModuleNotFoundError as error:  # what the default model's conversion needs
        typer.echo(f"error: the demo needs {error.name}: pip install 'lmkv[demo]'", err=True)
        raise typer.Exit(1) from error
    except DemoError as error:
        report.show_error(Console(stderr=True), error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the engines end", err=True)
        raise typer.Exit(INTERRUPTED) from error
    if not results.answers_equal:
        raise typer.Exit(ANSWERS_DIFFER)


def _names(engines: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in engines.split(",") if name.strip())
    known = _ENGINES.split(",")
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r}: choose from {_ENGINES}", param_hint="--engines")
    if not names:
        raise typer.BadParameter(f"choose from {_ENGINES}", param_hint="--engines")
    return names


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
