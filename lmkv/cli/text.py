"""Sizes and times as commands print and take them."""

from __future__ import annotations

import re

from lmkv.errors import ConfigError

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


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


def parse_age(text: str) -> float:
    """Seconds in "90s", "30m", "12h", "7d" or "2w". Raises ConfigError for anything else."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f'expected a time span such as "12h", "7d" or "2w", not {text!r}')
    return float(match.group(1)) * _SECONDS[match.group(2)]
