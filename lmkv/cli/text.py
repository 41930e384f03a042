"""Sizes and times as commands print and take them, and how they say what cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from lmkv.errors import ConfigError


def size_text(count: float) -> str:
    """Bytes for people, as in "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age_text(seconds: float) -> str:
    """A time span for people, as in "3 h", "2 days"."""
    for unit, length in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if unit == 'day' and number != 1 else ''}"
    return f"{max(0, int(seconds))} s"


def shown(text: str, most: int = 200) -> str:
    """What somebody else's file says, as a terminal may show it: no control characters."""
    cut = text if len(text) <= most else f"{text[:most]}..."
    return "".join(one if one.isprintable() else "?" for one in cut)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What cannot work is one line and exit status 2."""
    try:
        yield
    except BrokenPipeError:  # of what we print to: click knows what to do
        raise
    except (OSError, ConfigError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
