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
        bool, typer.Option("--headless", help="No page: ask every engine twice, print a table.")
    ] = False,
    attach: Annotated[
        str | None,
        typer.Option(
            help="The page over engines that already run: URL=plain or URL=lmkv, separated by "
            "commas. None is started.",
            metavar="LIST",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address that the page listens on.")] = "127.0.0.1",
    page_port: Annotated[
        int | None,
        typer.Option(help="The page's port. Default: 8501, or a free one.", min=1, max=65535),
    ] = None,
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
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the results to this file. Implies --headless."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="First of the engines' ports. Default: free ones.", min=1, max=65535),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer.", min=1, max=4096)] = 48,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the engines to become ready, or to answer.", min=1)
    ] = 900.0,
) -> None:
    """Compare vLLM engines with and without lmkv on a page, or with --headless in a table.

    The page ends with Ctrl-C, exit status 0. Exit status of --headless: 0 when all answers are
    equal, 3 when they are not, 130 when interrupted. Of both: 1 on failure, 2 on wrong usage. No
    engine that was started is left running in any case.
    """
    headless = headless or json_file is not None
    if headless and attach is not None:
        raise typer.BadParameter("the terminal run starts its own engines", param_hint="--attach")
    if attach is not None and (model is not None or port is not None or engines != _ENGINES):
        raise typer.BadParameter(
            "the engines run already: --engines, --model and --port are for those that are started",
            param_hint="--attach",
        )
    names = _names(engines)
    # Loaded only now, so that `lmkv --help` stays fast.
    try:
        from rich.console import Console

        from lmkv.demo import backends, page_server, report
        from lmkv.demo import document as documents
        from lmkv.demo import headless as terminal
        from lmkv.demo.errors import DemoError
        from lmkv.demo.plan import Settings
    except ModuleNotFoundError as error:
        raise _missing(error) from error

    settings = Settings(
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
        if attach is not None:
            addresses = backends.parse_attach(attach)
            page_server.attach(addresses, settings, host, page_port, Console())
        elif not headless:
            page_server.run(settings, host, page_port, Console())
        elif not terminal.run(settings, Console()).answers_equal:
            raise typer.Exit(ANSWERS_DIFFER)
    except ModuleNotFoundError as error:  # the page, or the default model's conversion
        raise _missing(error) from error
    except DemoError as error:
        report.show_error(Console(stderr=True), error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; the engines end", err=True)
        raise typer.Exit(INTERRUPTED) from error


def _missing(error: ModuleNotFoundError) -> typer.Exit:
    typer.echo(
        f"error: the demo needs {error.name}: pip install '.[demo]' in the checkout", err=True
    )
    return typer.Exit(1)


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
