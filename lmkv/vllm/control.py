"""What one request asks of lmkv: ``kv_transfer_params={"lmkv": {...}}``."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lmkv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Control:
    """Per request; the defaults are what a request gets that says nothing.

    ``store``: its chunks may be stored. ``load``: its chunks may be loaded. ``max_load_tokens``:
    at most so many tokens are loaded, in whole chunks; the rest is computed.
    """

    store: bool = True
    load: bool = True
    max_load_tokens: int | None = None

    @property
    def passes_by(self) -> bool:
        return not (self.store or self.load)


DEFAULT = Control()
PASSES_BY = Control(store=False, load=False)


def parse(params: object) -> Control:
    """The control in a request's ``kv_transfer_params``, whose other entries are for others.

    Raises ConfigError for what cannot be meant, naming the nearest known name.
    """
    if not isinstance(params, Mapping) or "lmkv" not in params:
        return DEFAULT
    wanted = params["lmkv"]
    if not isinstance(wanted, Mapping):
        raise ConfigError(f"expected an object, not {wanted!r}")
    known = [spec.name for spec in fields(Control)]
    values: dict[str, Any] = {}
    for name, value in wanted.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{name}: unknown; did you mean {nearest}?")
        if name == "max_load_tokens":
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name}: expected a whole number, not {value!r}")
            if value is not None and value < 0:
                raise ConfigError(f"{name}: must not be negative, not {value}")
        elif not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, not {value!r}")
        values[name] = value
    return Control(**values)
