"""How people write the values of settings, and what they mean. All raise ConfigError for anything
else.
"""

import json
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from lmkv.errors import ConfigError
from lmkv.remote.store import Place

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?\s*", re.IGNORECASE)
_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")
_SHARED = "shared:"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%?\s*")
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def parse_size(value: object) -> int:
    """Bytes in ``value``: an int, or text such as ``"500GiB"``, ``"2GB"`` or ``"4096"``.

    KiB, MiB, GiB and TiB are powers of 1024, KB, MB, GB and TB powers of 1000. Raises
    ConfigError for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f'expected a size such as "500GiB", "2GB" or a number, not {value!r}')
    number, unit = match.group(1), (match.group(2) or "B").upper()
    base = 1024 if "I" in unit else 1000
    return int(float(number) * base ** "BKMGT".index(unit[0]))


class HostMemory(NamedTuple):
    """``bytes``, of each worker alone; or of an arena that all engines of the node share."""

    bytes: int
    is_shared: bool = False

    def __str__(self) -> str:
        return f"{_SHARED if self.is_shared else ''}{format_size(self.bytes)}"


def parse_host_memory(value: object) -> HostMemory:
    """As ``parse_size``, or text such as ``"shared:64GiB"``."""
    if isinstance(value, HostMemory):
        return value
    if isinstance(value, str) and value.strip().startswith(_SHARED):
        return HostMemory(parse_size(value.strip().removeprefix(_SHARED)), is_shared=True)
    return HostMemory(parse_size(value))


def parse_age(value: object) -> float:
    """Seconds in ``value``: a number, or text such as ``"90s"``, ``"30m"``, ``"12h"``, ``"7d"``,
    ``"2w"`` or ``"0"``. Raises ConfigError for anything else, text without a unit included.
    """
    if value == "0":
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _AGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f'expected a time span such as "12h", "7d" or "2w", not {value!r}')
    return float(match.group(1)) * _SECONDS[match.group(2)]


def format_size(size: int) -> str:
    """The shortest exact text for ``size`` bytes, such as ``"2GiB"``."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}B"


def parse_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ConfigError(f"expected true or false, not {value!r}")
    return text in _TRUE


def parse_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        return int(value)
    raise ConfigError(f"expected a whole number, not {value!r}")


def parse_percent(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        return float(match.group(1))
    raise ConfigError(f'expected a percentage such as 5 or "2.5%", not {value!r}')


def parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"expected text, not {value!r}")
    return value


def parse_number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return float(value)
    raise ConfigError(f"expected a number, not {value!r}")


def split_paths(text: str) -> list[str]:
    """The directories in ``text``, which are separated by ":" as in PATH."""
    return text.split(os.pathsep)


def parse_path(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"expected an absolute path, not {value!r}")
    text = os.path.expanduser(os.fspath(value))
    if not os.path.isabs(text):
        raise ConfigError(f"expected an absolute path, not {value!r}")
    return os.path.normpath(text)


def parse_paths(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    paths = tuple(parse_path(one) for one in listed)
    if not paths:
        raise ConfigError("expected a directory or a list of directories, not an empty list")
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ConfigError(f"{twice[0]} is named twice")
    return paths


def parse_remote(value: object) -> str:
    text = parse_text(value)
    return str(Place.parse(text)) if text else ""


def parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"expected JSON, not {text!r}: {error}") from None


def parse_options(value: object) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        value = parse_json(value) if value.strip("() ") else {}
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, Iterable) or isinstance(pairs, str):
        raise ConfigError(f"expected a mapping, not {value!r}")
    return tuple(sorted((str(name), _option(one)) for name, one in pairs))


def _option(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ConfigError(f"expected one of {', '.join(choices)}, not {value!r}")
        return str(value)

    return parse
