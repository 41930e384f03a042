"""What of a prompt is in a directory, chunk by chunk, and where its prefix breaks.

Nothing here imports torch: a prompt comes as vLLM's hashes of its blocks (``lmkv.vllm.prompt``).
Everything blocks on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmkv._C import Directory, Finding, inspect_chunk, root_of
from lmkv.errors import ConfigError
from lmkv.namespace import Namespace
from lmkv.vllm.lookup import Lookup, chunk_key

STATES = ("present", "missing", "bad", "unreadable")  # from the best to what is told first


@dataclass(frozen=True, slots=True)
class File:
    """One rank's file of a chunk. ``root`` is where engines look for it, ``elsewhere`` another
    directory that it lies in; ``used`` is when it was last used, in seconds since the epoch.
    """

    rank: int
    root: str
    path: str
    state: str
    why: str = ""
    bytes: int = 0
    used: float = 0.0
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class ExplainedChunk:
    """Tokens [``begin``, ``end``) of the prompt. ``number`` counts from 1; a tail has the number of
    the chunk that it is the beginning of.
    """

    number: int
    begin: int
    end: int
    is_tail: bool
    key: bytes
    files: Sequence[File]

    @property
    def state(self) -> str:
        return max((file.state for file in self.files), key=STATES.index)

    @property
    def name(self) -> str:
        kind = "the tail" if self.is_tail else f"chunk {self.number}"
        return f"{kind} (tokens {self.begin:,} to {self.end - 1:,})"


@dataclass(slots=True)
class Explanation:
    """Of one namespace. ``loadable``: leading tokens that an engine would load; ``wanted``: as many
    as it could, were all there. ``stops_at`` is the chunk that ends the prefix.
    """

    tokens: int
    wanted: int
    loadable: int = 0
    chunks: list[ExplainedChunk] = field(default_factory=list)
    stops_at: ExplainedChunk | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a namespace decides where its chunks begin, and how many files each has."""

    name: str
    digest: bytes
    block_tokens: int
    blocks_per_chunk: int
    ranks: int
    hash_algorithm: str
    hash_seed: str
    has_windows: bool = False  # or states: groups that may end a prefix earlier

    @classmethod
    def of(cls, name: str, facts: Mapping[str, Any]) -> Shape:
        """Raises ConfigError for facts that are not those of the namespace of this name."""
        try:
            namespace = Namespace(facts)
            block_tokens = int(facts["block_tokens"])
            blocks_per_chunk = int(facts["chunk_tokens"]) // block_tokens
            ranks = int(facts["tensor_parallel"]) * int(facts["pipeline_parallel"])
            algorithm, seed = str(facts["hash_algorithm"]), str(facts["hash_seed"])
        except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"namespace {name}: its meta.json lacks {error}") from error
        if namespace.short != name or blocks_per_chunk < 1 or ranks < 1:
            raise ConfigError(f"namespace {name}: its meta.json is not its own")
        return cls(
            name,
            namespace.digest,
            block_tokens,
            blocks_per_chunk,
            ranks,
            algorithm,
            seed,
            has_windows="groups" in facts,
        )


def explain(
    roots: Sequence[str],
    shape: Shape,
    block_hashes: Sequence[bytes],
    tokens: int,
    *,
    blocks: bool = False,
) -> Explanation:
    """Look for the chunks of a prompt of so many ``tokens`` as an engine over ``roots`` does.

    ``blocks``: read the files whole, not only their headers.
    """
    # At least the last token is computed: its logits are wanted.
    limit = min(max(tokens - 1, 0) // shape.block_tokens, len(block_hashes))
    found = Explanation(tokens, limit * shape.block_tokens)
    run = _find(roots, shape, block_hashes, limit)
    finder = _Finder(roots, shape, block_hashes, blocks)
    per_chunk = shape.blocks_per_chunk
    whole = limit // per_chunk
    ends = {(index + 1) * per_chunk for index in range(whole)} | {limit} | {run}
    found.chunks = [finder.chunk(end) for end in sorted(ends - {0})]
    for chunk in found.chunks:
        if chunk.end > run * shape.block_tokens or chunk.state != "present":
            found.stops_at = chunk
            break
        found.loadable = chunk.end
    found.why = _why(found)
    if shape.has_windows and found.loadable:
        found.why += (
            " That is what its full attention has: an engine also needs the files of the model's "
            "windows or states, which are not looked at here, and may load less."
        )
    return found


def _find(roots: Sequence[str], shape: Shape, block_hashes: Sequence[bytes], limit: int) -> int:
    """The block that what an engine finds ends before: by the code of engines."""
    directory = Directory(root=list(roots), namespace=shape.digest, ranks=shape.ranks)
    lookup = Lookup(directory, shape.blocks_per_chunk, tails=True)
    while True:  # what the filesystem does not say in a second is taken for absent
        lookup.begin_step()
        run = lookup.find(block_hashes, 0, limit)
        if run is not None:
            return run.end if run else 0
        time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class _Finder:
    roots: Sequence[str]
    shape: Shape
    block_hashes: Sequence[bytes]
    blocks: bool

    def chunk(self, end: int) -> ExplainedChunk:
        """The chunk whose last block is the one before ``end``."""
        per_chunk, block_tokens = self.shape.blocks_per_chunk, self.shape.block_tokens
        begin = (end - 1) // per_chunk * per_chunk
        key = chunk_key(self.block_hashes[end - 1])
        return ExplainedChunk(
            number=begin // per_chunk + 1,
            begin=begin * block_tokens,
            end=end * block_tokens,
            is_tail=end % per_chunk > 0,
            key=key,
            files=[self._file(rank, key, begin, end) for rank in range(self.shape.ranks)],
        )

    def _file(self, rank: int, key: bytes, begin: int, end: int) -> File:
        home = self.roots[root_of(list(self.roots), key)]
        path = self._path(home, rank, key)
        found = inspect_chunk(home, self.shape.name, rank, key, self.blocks)
        if found.finding is Finding.GONE:
            others = (root for root in self.roots if root != home)
            elsewhere = next((o for o in others if os.path.lexists(self._path(o, rank, key))), "")
            return File(rank, home, path, "missing", elsewhere=elsewhere)
        state, why = "present", found.text
        if found.finding is Finding.UNREADABLE:
            state = "unreadable"
        elif found.finding is Finding.BAD:
            state = "bad"
        elif (found.token_begin, found.tokens) != (
            begin * self.shape.block_tokens,
            (end - begin) * self.shape.block_tokens,
        ):
            state, why = "bad", "its header tells of other tokens"
        return File(rank, home, path, state, why, found.bytes, _last_used(path))

    def _path(self, root: str, rank: int, key: bytes) -> str:
        text = key.hex()
        return os.path.join(root, "v1", self.shape.name, f"r{rank}", text[:3], f"{text}.kv")


def _last_used(path: str) -> float:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _why(found: Explanation) -> str:
    """The whole answer in a few sentences."""
    if not found.wanted:
        return (
            f"The prompt has {found.tokens:,} tokens, and nothing of it is stored or loaded: that "
            "takes a whole block, and the last token is always computed."
        )
    said = f"The first {found.loadable:,} of {found.tokens:,} tokens can be loaded"
    if not found.loadable:
        said = f"None of the {found.tokens:,} tokens can be loaded"
    chunk = found.stops_at
    if chunk is None:
        return f"{said}: all that are whole blocks; the last token is always computed."
    return f"{said}; {_why_not(found, chunk)}"


def _why_not(found: Explanation, chunk: ExplainedChunk) -> str:
    name, state = chunk.name, chunk.state
    worst = [file for file in chunk.files if file.state == state]
    ranks = ", ".join(str(file.rank) for file in worst)
    whose = f" in rank {ranks}" if len(worst) < len(chunk.files) else ""
    if state == "present":
        return f"{name} was stored this moment, or the filesystem took long to answer."
    if state == "bad":
        return (
            f"{name} is bad{whose} ({worst[0].why}): an engine that loads it computes it instead, "
            f"and replaces it. Its file is {worst[0].path}"
        )
    if state == "unreadable":
        return (
            f"{name} cannot be read{whose} ({worst[0].why}): look at the permissions of "
            f"{worst[0].path}, and at the disk."
        )
    if elsewhere := next((file.elsewhere for file in worst if file.elsewhere), ""):
        return (
            f"{name} lies in {elsewhere}, and engines over these directories look for it in "
            f"{worst[0].root}: it was stored by one that names other directories."
        )
    if whose:
        return f"{name} is missing{whose}: it was evicted there, or its store was dropped."
    # Keys stand for all that is before them.
    if any(other.begin > chunk.begin and other.state == "present" for other in found.chunks):
        return (
            f"{name} is missing, and what is stored behind it is of the same prompt: it was "
            "evicted or deleted, or its store was dropped. The next engine that computes it "
            "stores it again."
        )
    return (
        f"{name} is missing: it was never stored, has been evicted, or the prompt differs in it "
        "from those that were stored."
    )
