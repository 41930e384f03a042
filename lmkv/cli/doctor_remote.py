"""``lmkv doctor``: whether the remote tier can be reached, and does what it is asked."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lmkv.cli.diagnosis import Diagnosis
from lmkv.config import Config
from lmkv.errors import ConfigError
from lmkv.remote.store import Item, Place, RemoteError, RemoteStore, open_store

PROBE_BYTES = 1 << 20

# A client that cannot reach its engine may try for minutes.
PATIENCE_SECONDS = 20.0

WITHOUT = "Until then engines do without it: each has what its own directory has."

T = TypeVar("T")


def examine_remote(found: Diagnosis, settings: Config) -> None:
    """Of ``settings`` with a remote tier: something is put there, got, and removed. All that is
    wrong is a note: engines work without.
    """
    place = settings.remote_place
    if place is None:
        return
    if place.directory:
        _examine_directory(found, place, settings)
        return
    try:
        open_seconds, store = _in_time(lambda: open_store(place))
        probes = _in_time(lambda: _probe(place, store))[1]
        found.facts["remote"] = (
            f"{place}: client ready in {open_seconds * 1e3:.0f} ms, a question "
            f"{probes[0] * 1e3:.1f} ms, 1 MiB put in {probes[1] * 1e3:.1f} and got in "
            f"{probes[2] * 1e3:.1f} ms"
        )
    except (ConfigError, RemoteError, TimeoutError) as error:
        found.facts["remote"] = f"{place}: cannot be used"
        found.note(f"the remote tier {place} cannot be used: {error}. {WITHOUT}")


def _examine_directory(found: Diagnosis, place: Place, settings: Config) -> None:
    from lmkv import _C

    probe = _C.probe_root(
        place.directory,
        io_engine=settings.io_engine,
        direct_io=settings.direct_io,
        shared=settings.shared,
        file_mode=settings.file_mode,
    )
    if probe.error:
        found.facts["remote"] = f"{place}: cannot be used"
        found.note(f"the remote tier {place} cannot be used: {probe.error}. {WITHOUT}")
        return
    found.facts["remote"] = f"{place}: {probe.filesystem}, shared: {probe.shared_reason}"


def _in_time(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds and result. Raises what it raises, and TimeoutError."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            errors.append(error)

    begin = time.perf_counter()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {PATIENCE_SECONDS:.0f} s")
    if errors:
        raise errors[0]
    return time.perf_counter() - begin, results[0]


def _probe(place: Place, store: RemoteStore) -> tuple[float, float, float]:
    """Seconds of a question, of a put and of a get of ``PROBE_BYTES``. Raises RemoteError."""
    content = os.urandom(PROBE_BYTES)
    memory = ctypes.create_string_buffer(content, 2 * PROBE_BYTES)
    address = ctypes.addressof(memory)
    store.register(address, 2 * PROBE_BYTES)
    name = place.name_of(os.urandom(32), 0, os.urandom(32))
    begin = time.perf_counter()
    store.exists([name])
    asked = time.perf_counter() - begin
    put = _carried(store.put, Item(name, address, PROBE_BYTES), "put")
    got = _carried(store.get, Item(name, address + PROBE_BYTES, PROBE_BYTES), "got")
    if memory.raw[PROBE_BYTES:] != content:
        raise RemoteError("what was got is not what was put")
    store.remove(name)
    store.close()
    return asked, put, got


def _carried(call: Callable[..., None], item: Item, what: str) -> float:
    from lmkv._C import RemoteResult

    outcomes: list[tuple[RemoteResult, str]] = []
    begin = time.perf_counter()
    call([item], lambda _, result, why: outcomes.append((result, why)))
    ((result, why),) = outcomes
    if result is not RemoteResult.DONE:
        raise RemoteError(f"nothing can be {what}: {why or result.name}")
    return time.perf_counter() - begin
