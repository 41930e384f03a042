"""Which model the engines serve, and whether the document fits it; asks before starting them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lmkv.demo.document import Document
from lmkv.demo.errors import DemoError
from lmkv.demo.machine import Machine
from lmkv.demo.model import prepare_smollm2

_GPU_MODELS = ((22.0, "Qwen/Qwen2.5-7B-Instruct"), (6.0, "Qwen/Qwen2.5-1.5B-Instruct"))
"""(GiB of one engine's GPU memory, the public model for it), the largest first."""

USUAL_LENGTH = 4096
"""Tokens of context to serve with where nothing asks for more."""
_CHAT_MARKS = 64  # tokens of room for the chat template's own words
_HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Model:
    """`source` is what vLLM loads, `name` what people call it; `max_len` 0 lets vLLM decide."""

    source: str
    name: str
    max_len: int


def choose(
    wanted: str | None,
    machine: Machine,
    engines: int,
    document: Document,
    max_tokens: int,
    least_length: int = USUAL_LENGTH,
) -> Model:
    """The model to serve: the `wanted` one, or the best public one that this machine can get.

    Blocks on the network for seconds at most, and on the disk while the default model for CPUs
    is converted. Raises `DemoError` when the model is missing or the document does not fit.
    """
    source = wanted or _default(machine, engines)
    path = Path(source).expanduser()
    if not os.path.isdir(path):
        if path.is_absolute() or source.startswith((".", "~")):
            raise DemoError(f"there is no model folder {source}")
        return Model(source, source, 0 if machine.on_gpu else least_length)
    if not (path / "config.json").is_file():
        raise DemoError(
            f"{source} is no model folder: it has no config.json",
            hint="give --model a Hugging Face name, or a folder in Hugging Face's format",
        )
    return Model(str(path.resolve()), path.name, _length(path, document, max_tokens, least_length))


def _default(machine: Machine, engines: int) -> str:
    if machine.on_gpu:
        share = machine.gpu_memory_gib / -(-engines // len(machine.gpus))
        for needed, name in _GPU_MODELS:
            if share >= needed and _available(name):
                return name
    return str(prepare_smollm2())


def _available(name: str) -> bool:
    """Whether the model is in the local Hugging Face cache, or the hub answers."""
    try:
        import huggingface_hub
    except ImportError:
        return False
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return True
    try:
        huggingface_hub.model_info(name, timeout=_HUB_TIMEOUT_S)
    except Exception:  # noqa: BLE001 - offline has many names, and all of them mean no
        return False
    return True


def _length(path: Path, document: Document, max_tokens: int, least: int) -> int:
    """The context length to serve with: `least` or more, to hold the document; the model's most."""
    try:
        limit = int(json.loads((path / "config.json").read_text())["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # vLLM will say what it thinks of this configuration
    needed = _tokens(path, document.text) + max_tokens + _CHAT_MARKS
    if needed > limit:
        raise DemoError(
            f"{document.name} is too long for {path.name}: with the answer it needs {needed:,} "
            f"tokens, and the model takes {limit:,}",
            hint="give a shorter --document, or a --model with a longer context",
        )
    length = least
    while length < needed:
        length *= 2
    return min(length, limit)


def _tokens(path: Path, text: str) -> int:
    """How many tokens `text` has; 0 when the folder has no tokenizer.json."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        return 0
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise DemoError(f"{file} is no tokenizer: {error}") from error
    return len(tokenizer.encode(text).ids)
