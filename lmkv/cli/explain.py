"""``lmkv explain``: which chunks of a prompt are in a directory, and where its prefix breaks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmkv.cli.text import age_text, one_line_errors, size_text
from lmkv.errors import ConfigError
from lmkv.sharing import PRIVATE_SEED, Side

if TYPE_CHECKING:
    from lmkv.explain import ExplainedChunk, Explanation


def explain(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="All that engines are given, by the paths that they are given."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or name of a hub. Default: as its engines were given it."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help='The prompt, in a text file; "-": stdin.')
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="FILE", help='Its token ids, as JSON or by spaces; "-": stdin.'),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='JSON as it is sent to /v1/chat/completions or /v1/completions; "-": stdin.',
        ),
    ] = None,
    cache_salt: Annotated[
        str | None, typer.Option(help="The request's cache_salt, if it has one.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NAME", help="This one only: its 16 hex digits.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read chunks whole, not only their headers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say of a prompt which of its chunks are in DIR, and where its prefix breaks.

    Keys are made by vLLM's own code, as an engine of each namespace makes them. vLLM's prefix cache
    and host memory of engines are not looked at. Requests with images, or for a LoRA adapter, are
    others. Exit status 1 if not all of it can be loaded in any namespace, 2 for what cannot be.
    """
    with one_line_errors():
        prompt = _prompt(text, file, tokens, request, cache_salt)
        roots = [os.path.abspath(one.expanduser()) for one in directories]
        answers = [
            _answer(roots, side, prompt, model, verify)
            for side in _namespaces(roots, model, namespace)
        ]
    if as_json:
        typer.echo(json.dumps({"namespaces": [_answer_json(one) for one in answers]}, indent=2))
    else:
        for one in answers:
            _print(one, Console())
    whole = any(one.found and one.found.loadable == one.found.wanted > 0 for one in answers)
    raise typer.Exit(0 if whole else 1)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Token ids, or a request that they are made of."""

    tokens: list[int] | None
    request: dict[str, Any]
    cache_salt: str


def _prompt(
    text: str | None,
    file: str | None,
    tokens: str | None,
    request: str | None,
    cache_salt: str | None,
) -> _Prompt:
    if sum(one is not None for one in (text, file, tokens, request)) != 1:
        raise ConfigError("give the prompt by one of --text, --file, --tokens and --request")
    if tokens is not None:
        return _Prompt(_token_ids(_read(tokens)), {}, cache_salt or "")
    if request is not None:
        try:
            said = json.loads(_read(request))
            said = {"model": "", **said}
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{request} has no JSON object: {error}") from error
        return _Prompt(None, said, cache_salt or str(said.get("cache_salt") or ""))
    prompt = text if text is not None else _read(file or "-")
    return _Prompt(None, {"model": "", "prompt": prompt}, cache_salt or "")


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is no text: {error}") from error


def _token_ids(text: str) -> list[int]:
    try:
        ids = json.loads(text) if "[" in text else [int(word) for word in text.split()]
    except ValueError as error:
        raise ConfigError(f"these are no token ids: {error}") from error
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise ConfigError("these are no token ids, which are whole numbers")
    return ids


def _namespaces(roots: Sequence[str], model: str | None, name: str | None) -> list[Side]:
    """Those to look into. Raises ConfigError if there is none."""
    from lmkv.cli.doctor_sharing import read_metas, side_of

    for root in roots:
        os.scandir(root).close()
    metas = read_metas(roots)
    if name is not None and name not in metas:
        raise ConfigError(f"there is no namespace {name!r} (16 hex digits): see lmkv stats")
    sides = [side for one, said in metas.items() if (side := side_of(one, said))]
    if name is not None:
        sides = [side for side in sides if side.name == name]
    else:
        # Chunks of a tier begin and are named otherwise, and its meta.json does not say how.
        sides = [side for side in sides if "tier" not in side.facts]
        if model is not None:
            sides = list(_of_model(sides, model))
    if not sides:
        what = f"for {model} " if model else ""
        raise ConfigError(
            f"there is no namespace {what}whose meta.json can be read: see lmkv stats"
        )
    return sides


def _of_model(sides: Sequence[Side], model: str) -> Iterator[Side]:
    from lmkv.weights import weights_id

    path = Path(model).expanduser()
    weights = weights_id(path) if path.exists() else ""
    for side in sides:
        fact = str(side.facts.get("model", ""))
        if weights:
            if fact == f"weights {weights}":
                yield side
        elif model in {side.model, fact.partition(" ")[0], os.path.basename(side.model)}:
            yield side


# What vLLM says while it is imported is not for stdout.
_QUIET = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(slots=True)
class _Answer:
    """``found`` is None where nothing can be known, for the reason ``why``."""

    side: Side
    found: Explanation | None
    why: str


def _answer(
    roots: Sequence[str], side: Side, prompt: _Prompt, model: str | None, verify: bool
) -> _Answer:
    from lmkv.explain import Shape
    from lmkv.explain import explain as explain_hashes

    shape = Shape.of(side.name, side.facts)
    if shape.hash_seed.startswith(PRIVATE_SEED):
        why = (
            "Its engine's block hashes begin with a random number, so that only it finds its "
            "chunks: set PYTHONHASHSEED, or start it with --prefix-caching-hash-algo sha256_cbor."
        )
        return _Answer(side, None, why)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from lmkv.vllm.prompt import block_hashes, prompt_tokens
    except ImportError as error:
        raise ConfigError(f"vLLM is needed for its hashes, and does not load: {error}") from error
    tokens = prompt.tokens
    if tokens is None:
        tokens = prompt_tokens(model or side.model, prompt.request)
    hashes = block_hashes(
        tokens,
        block_tokens=shape.block_tokens,
        algorithm=shape.hash_algorithm,
        seed=shape.hash_seed,
        cache_salt=prompt.cache_salt,
    )
    found = explain_hashes(roots, shape, hashes, len(tokens), blocks=verify)
    return _Answer(side, found, found.why)


def _answer_json(one: _Answer) -> dict[str, Any]:
    told: dict[str, Any] = {"name": one.side.name, "model": one.side.model, "why": one.why}
    if found := one.found:
        told |= {
            "tokens": found.tokens,
            "wanted_tokens": found.wanted,
            "loadable_tokens": found.loadable,
            "stops_at": _chunk_json(found.stops_at) if found.stops_at else None,
            "chunks": [_chunk_json(chunk) for chunk in found.chunks],
        }
    return told


def _chunk_json(chunk: ExplainedChunk) -> dict[str, Any]:
    return asdict(chunk) | {"key": chunk.key.hex(), "state": chunk.state}


def _print(one: _Answer, console: Console) -> None:
    table = Table(title=escape(f"{one.side.name}, {one.side.model}"), title_justify="left")
    for column in ("Chunk", "Tokens", "Key", "State", "Size", "Last used", "Where"):
        justify: Literal["left", "right"] = "right" if column == "Size" else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for chunk in one.found.chunks if one.found else ():
        table.add_row(*_cells(chunk))
    if one.found:
        console.print(table)
    else:
        console.print(escape(f"{one.side.name}, {one.side.model}"), highlight=False)
    console.print(escape(one.why), soft_wrap=True, highlight=False)


def _cells(chunk: ExplainedChunk) -> list[str]:
    state = chunk.state
    of_ranks = [file.rank for file in chunk.files if file.state == state]
    if len(of_ranks) < len(chunk.files):
        state += f" in rank {', '.join(map(str, of_ranks))}"
    used = max(file.used for file in chunk.files)
    return [
        "tail" if chunk.is_tail else str(chunk.number),
        f"{chunk.begin:,} to {chunk.end - 1:,}",
        chunk.key.hex()[:16],
        state,
        size_text(sum(file.bytes for file in chunk.files)),
        f"{age_text(time.time() - used)} ago" if used else "",
        escape(chunk.files[0].root),
    ]
