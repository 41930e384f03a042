"""The storage layers of lmkv and of peers, each alone: host memory to files and back, no engine.

    python benchmarks/storage_layers.py --path DIR [--documents 9] [--layers NAME ...]

``peers.py`` measures whole engines. What has none on a CPU is here through its own classes, set as
it is by default, in units of its own, and so is lmkv. A document is what 2,049 tokens leave in the
KV cache of SmolLM2-135M (94 MB), random bytes, new ones for every turn. Layers take turns, in an
order that is drawn anew for every document. A layer stores one, what is not on the disk yet is
synced, the page cache is emptied of it, and the layer loads it into memory that holds it no more;
there every byte is compared. The first document warms up, and is not counted.

``store`` is until the layer says that all is stored: that may be in the page cache. ``disk`` is
that and sync(2). ``load`` is until all is in host memory. Ratios are over lmkv's time for the same
document: above 1 lmkv is ahead. Medians, with their range. A layer that cannot be measured gets no
number, but a reason.

What the layers are is in ``layer_systems.py``. lmkv copies from an engine's KV cache and to it,
which no other does here; so there is lmkv without that, too, whose loads are seen by its checksums
only.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import layer_systems
from command_line import folder_in, keep_standard_output, parser_of, write_result
from layer_classes import CHUNK_TOKENS, Size
from layer_systems import HOMES, LAYERS
from page_cache import drop_pages

START_SECONDS = 300.0
ANSWER_SECONDS = 120.0
END_SECONDS = 10.0
TIMES = ("store", "disk", "load")
TOKEN_BYTES = 46_080  # of SmolLM2-135M, in float32


class LayerError(RuntimeError):
    """A layer cannot be measured; says why."""


class Home:
    """The process of some layers."""

    def __init__(self, name: str, layers: Sequence[str], folder: Path, size: Size) -> None:
        """Raises subprocess.CalledProcessError where its packages cannot be installed."""
        interpreter = HOMES[name]()
        python = sys.executable if interpreter is None else interpreter.python
        more = {} if interpreter is None else interpreter.environment
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [python, layer_systems.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"VLLM_NO_USAGE_STATS": "1"} | dict(more),
                start_new_session=True,
            )
        self._connection.send(([*layers], folder, size))

    def reasons(self) -> dict[str, str]:
        """Once it has made its layers: why it could not make others."""
        return dict(self._receive(START_SECONDS))

    def seconds(self, what: str, layer: str, name: str) -> float:
        """Of a store or a load. Raises LayerError."""
        with contextlib.suppress(BrokenPipeError):  # then there is nothing to receive, either
            self._connection.send((what, layer, name))
        seconds, error = self._receive(ANSWER_SECONDS)
        if error:
            raise LayerError(error)
        return float(seconds)

    def _receive(self, seconds: float) -> Any:
        if not self._connection.poll(seconds):
            raise LayerError(f"it did not answer in {seconds:.0f} s")
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise LayerError("it ended; its lines above say why") from None

    def close(self) -> None:
        """End it."""
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start(
    names: Sequence[str], folder: Path, size: Size, reasons: dict[str, str]
) -> dict[str, Home]:
    """The process of each layer that can be measured here; why others cannot into ``reasons``."""
    found: dict[str, Home] = {}
    with contextlib.ExitStack() as started:
        homes: dict[str, tuple[Home, list[str]]] = {}
        for name in dict.fromkeys(LAYERS[layer].home for layer in names):
            layers = [layer for layer in names if LAYERS[layer].home == name]
            try:
                home = Home(name, layers, folder, size)
            except (OSError, subprocess.CalledProcessError) as error:
                reasons |= dict.fromkeys(layers, f"it could not be installed: {error}")
                continue
            homes[name] = started.enter_context(contextlib.closing(home)), layers
        for home, layers in homes.values():
            try:
                failed = home.reasons()
            except LayerError as error:
                failed = dict.fromkeys(layers, str(error))
            reasons |= failed
            found |= {layer: home for layer in layers if layer not in failed}
            if home not in found.values():
                home.close()
        started.pop_all()
    return found


def turn(home: Home, layer: str, folder: Path, name: str) -> dict[str, float]:
    """Seconds of each kind, and the bytes of the files. Raises LayerError."""
    before = drop_pages(folder)
    os.sync()
    stored = home.seconds("store", layer, name)
    begin = time.perf_counter()
    os.sync()
    synced = time.perf_counter() - begin
    size = drop_pages(folder) - before
    loaded = home.seconds("load", layer, name)
    return {"store": stored, "disk": stored + synced, "load": loaded, "bytes": size}


def measure(
    folder: Path, names: Sequence[str], documents: int, size: Size, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Of each document, of each layer: what ``turn`` says; and why others cannot be measured."""
    source = random.Random(seed)
    reasons: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    homes = start(names, folder, size, reasons)
    try:
        for number in range(documents + 1):
            row: dict[str, Any] = {}
            for layer in source.sample([*homes], len(homes)):
                if layer not in reasons:
                    try:
                        row[layer] = turn(homes[layer], layer, folder / layer, f"{number}")
                    except LayerError as error:
                        reasons[layer] = str(error)
            rows.append(row)
            print(f"document {number}: {row}", file=sys.stderr, flush=True)
    finally:
        with contextlib.ExitStack() as ends:
            for home in set(homes.values()):
                ends.callback(home.close)
    counted = [{name: one for name, one in row.items() if name not in reasons} for row in rows[1:]]
    return counted, reasons


def summary(
    rows: list[dict[str, Any]], reasons: dict[str, str], names: Sequence[str], size: Size
) -> dict[str, Any]:
    """The JSON of what ``measure`` found."""
    layers: dict[str, Any] = {}
    for name in names:
        kind = LAYERS[name]
        layers[name] = {"title": kind.title, "checks": kind.checks}
        if name in reasons:
            layers[name] |= {"failed": reasons[name], "published": kind.published}
            continue
        layers[name]["bytes"] = statistics.median(row[name]["bytes"] for row in rows)
        for time_ in TIMES:
            each = [row[name][time_] for row in rows]
            layers[name][f"{time_}_ms"] = statistics.median(each) * 1e3
            if "lmkv" in rows[0]:
                ratios = [row[name][time_] / row["lmkv"][time_] for row in rows]
                layers[name][f"{time_}_ratio"] = statistics.median(ratios)
                layers[name][f"{time_}_ratio_range"] = [min(ratios), max(ratios)]
    return {
        "bytes": size.bytes_total,
        "layers": layers,
        "repetitions": len(rows),
        "documents": rows,
    }


def main() -> None:
    """See the module."""
    peers = [name for name in LAYERS if name != "lmkv"]
    parser = parser_of("Storage layers of lmkv and of its peers, each alone.")
    parser.add_argument("--documents", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=2048, help="of a document, in whole chunks")
    parser.add_argument("--token-bytes", type=int, default=TOKEN_BYTES)
    parser.add_argument("--layers", nargs="*", default=peers, choices=peers)
    arguments = parser.parse_args()
    if arguments.tokens < CHUNK_TOKENS or arguments.tokens % CHUNK_TOKENS:
        parser.error(f"--tokens: {arguments.tokens} is no multiple of {CHUNK_TOKENS}")
    size = Size(arguments.tokens, arguments.token_bytes)
    names = ["lmkv", *arguments.layers]
    keep_standard_output()
    with folder_in(arguments.path, "layers") as folder:
        rows, reasons = measure(folder, names, arguments.documents, size)
    write_result(summary(rows, reasons, names, size), arguments.json)


if __name__ == "__main__":
    main()
