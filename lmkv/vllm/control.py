"""What one request asks of lmkv: ``kv_transfer_params={"lmkv": {...}}``."""

import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vllm.logger import init_logger

from lmkv.errors import ConfigError
from lmkv.vllm.activity import Throttle

logger = init_logger("vllm.lmkv")


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


MOST_SHOWN = 40

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = MOST_SHOWN
shown = _short.repr

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
        raise ConfigError(f"expected an object, not {shown(wanted)}")
    known = [spec.name for spec in fields(Control)]
    values: dict[str, Any] = {}
    for name, value in wanted.items():
        if name not in known:
            # On the scheduler's thread, of what anybody may send: however long it is.
            start = str(name)[:MOST_SHOWN]
            nearest = difflib.get_close_matches(start, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{shown(name)}: unknown; did you mean {nearest}?")
        if name == "max_load_tokens":
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name}: expected a whole number, not {shown(value)}")
            if value is not None and value < 0:
                raise ConfigError(f"{name}: must not be negative, not {shown(value)}")
        elif not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, not {shown(value)}")
        values[name] = value
    return Control(**values)


class Controls:
    """Of the requests that there are. Scheduler thread only."""

    def __init__(self) -> None:
        self._controls: dict[str, Control] = {}  # where it is not the default
        self._lines = Throttle()

    def read(self, request_id: str, params: object) -> bool:
        """Take in a new request's ``kv_transfer_params``.

        False if they cannot be understood: the request then passes by, since it may have been meant
        to keep its KV out of the directory.
        """
        try:
            wanted = parse(params)
        except Exception as error:  # noqa: BLE001 - nothing that is sent may end the engine
            self._controls[request_id] = PASSES_BY
            if self._lines.passes():
                logger.warning(
                    "lmkv: request %s passes by, for what its kv_transfer_params ask of lmkv is "
                    "not understood: %s",
                    request_id,
                    error,
                )
            return False
        if wanted != DEFAULT:
            self._controls[request_id] = wanted
        return True

    def of(self, request_id: str) -> Control:
        """What that request asks for."""
        return self._controls.get(request_id, DEFAULT)

    def forget(self, request_id: str) -> None:
        """The request ended."""
        self._controls.pop(request_id, None)
