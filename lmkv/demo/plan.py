"""What a demo is to start, checked before anything is started."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

from lmkv.demo import document as documents
from lmkv.demo import machine, model_choice, ports
from lmkv.demo.document import Document
from lmkv.demo.errors import DemoError
from lmkv.demo.launch import EngineSpec
from lmkv.demo.run_folder import KV, free_bytes

ENGINES = ("plain-a", "plain-b", "lmkv-a", "lmkv-b")
LEAST_FREE_BYTES = 1 << 30
_GIB_OF_A_CPU_ENGINE = 3.5  # three processes with vLLM loaded, the smallest model and its KV


@dataclass(frozen=True)
class Settings:
    """What `lmkv demo` was asked to do. `timeout_s` is for the engines' start."""

    engines: tuple[str, ...] = ENGINES
    model: str | None = None
    directory: Path | None = None
    document: Path | None = None
    question: str = documents.DEFAULT_QUESTION
    json_file: Path | None = None
    port: int | None = None
    max_tokens: int = 48
    timeout_s: float = 900.0


@dataclass(frozen=True)
class Plan:
    """The engines to start, and what they are asked about."""

    specs: tuple[EngineSpec, ...]
    model: str
    document: Document

    def with_directory(self, directory: Path) -> Plan:
        """The same plan, with `directory` for the KV of the lmkv engines."""
        specs = tuple(replace(spec, directory=directory) for spec in self.specs)
        return replace(self, specs=specs)


def make(settings: Settings, least_length: int) -> Plan:
    """The plan for `settings`, for a context of at least `least_length` tokens.

    Blocks: it may convert the default model. Raises `DemoError` for what cannot work.
    """
    names = tuple(name for name in ENGINES if name in settings.engines)
    _check_core(names)
    this = machine.look()
    check_memory(this, len(names))
    text = documents.load(settings.document)
    model = model_choice.choose(
        settings.model, this, len(names), text, settings.max_tokens, least_length
    )
    numbers = ports.choose(len(names), settings.port)
    specs = tuple(
        EngineSpec(
            name=name,
            kind=name.split("-")[0],
            model=model.source,
            port=port,
            machine=this,
            position=position,
            engines=len(names),
            max_model_len=model.max_len,
        )
        for position, (name, port) in enumerate(zip(names, numbers, strict=True))
    )
    return Plan(specs, model.name, text)


def _check_core(names: tuple[str, ...]) -> None:
    if not any(name.startswith("lmkv") for name in names):
        return
    if importlib.util.find_spec("lmkv._C") is None:
        raise DemoError(
            "lmkv's C++ core is not built", hint="`make build`, or `pip install .` in a checkout"
        )


def check_json_file(file: Path | None) -> None:
    """Finds before anything is started what would fail at the end; raises `DemoError`."""
    if file is not None:
        folder = file.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or file.is_dir():
            raise DemoError(f"cannot write {file}: no folder that can be written to")


def check_memory(this: machine.Machine, engines: int) -> None:
    """On a CPU, engines that do not fit would be killed by the system, or other programs would."""
    needed = engines * _GIB_OF_A_CPU_ENGINE
    if not this.on_gpu and this.memory_gib < needed:
        raise DemoError(
            f"{engines} engines need about {needed:.0f} GiB of memory, and {this.memory_gib:.0f} "
            "GiB are free",
            hint="start fewer, as with --engines plain-b,lmkv-a,lmkv-b, or stop other programs",
        )


def make_directory(settings: Settings, folder: Path) -> Path:
    """Makes the place for KV: the user's directory, or a fresh one in `folder`, which goes away.

    Raises `DemoError` when it cannot be used or has little room.
    """
    directory = (settings.directory or folder / KV).expanduser().absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = free_bytes(directory)
    except OSError as error:
        raise DemoError(f"cannot use the directory {directory}: {error.strerror}") from error
    if free < LEAST_FREE_BYTES:
        raise DemoError(
            f"only {free >> 20} MiB are free under {directory}",
            hint="free some space, or choose another directory with --dir",
        )
    return directory
