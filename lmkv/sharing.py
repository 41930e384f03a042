"""Why two engines do not share: which facts of their namespaces differ, and what to do about it.

Nothing here imports torch or touches a disk. One wrong setting changes several facts (a block size
also changes the shape and the bytes of a page), so the facts are told apart: a cause is one that
differs while nothing that it follows from does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Namespaces of one model that are compared with each other; there are a few.
MOST_COMPARED = 100

PRIVATE_SEED = "private to engine "

_MODEL = frozenset({"model", "hf_overrides", "hf_config_path", "code_revision", "vllm"})
_SHAPE = _MODEL | {
    "hf_config", "quantization", "draft_model", "dtype", "kv_cache_dtype", "block_tokens",
    "tensor_parallel", "pipeline_parallel", "layer_partition", "attention",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a fact is, in words; how both engines come to the same; what else may have made it."""

    words: str
    advice: str
    follows: frozenset[str] = frozenset()


# In the order in which they are told.
_FACTS: dict[str, _Fact] = {
    "namespace": _Fact(
        "your own string", 'give both the same "namespace" in kv_connector_extra_config'
    ),
    "tier": _Fact(
        "whether vLLM's own offloading connector is above the directory (LMKVTier), and how it "
        "lays out a chunk",
        "start both with the same connector, and the same settings of it",
    ),
    "vllm": _Fact("vLLM's minor version", "run the same minor version of vLLM in both"),
    "model": _Fact("the model", "give both the same model"),
    "hf_overrides": _Fact("--hf-overrides", "give both the same --hf-overrides"),
    "hf_config_path": _Fact("--hf-config-path", "give both the same --hf-config-path"),
    "code_revision": _Fact("--code-revision", "give both the same --code-revision"),
    "quantization": _Fact(
        "how weights are quantized", "start both with the same --quantization", _MODEL
    ),
    "hf_config": _Fact(
        "the model's configuration",
        "give both the same config.json, and the same version of transformers",
        _MODEL | {"quantization"},
    ),
    "architectures": _Fact(
        "the model's class", "give both the same config.json", _MODEL | {"hf_config"}
    ),
    "draft_model": _Fact(
        "the draft model, whose layers have KV too",
        "start both with the same --speculative-config, or none",
    ),
    "mm_processor_kwargs": _Fact(
        "how images are prepared", "start both with the same --mm-processor-kwargs"
    ),
    "dummy_weights_seed": _Fact(
        "weights that vLLM made up", "start both with the same --load-format and --seed"
    ),
    "max_model_len": _Fact(
        "the longest prompt, by which this model scales positions",
        "start both with the same --max-model-len",
    ),
    "dtype": _Fact(
        "what the model computes in", "start both with the same --dtype", frozenset({"model"})
    ),
    "kv_cache_dtype": _Fact("what KV is kept in", "start both with the same --kv-cache-dtype"),
    "block_tokens": _Fact("tokens in a block", "start both with the same --block-size"),
    "chunk_tokens": _Fact(
        "tokens in a chunk", 'give both the same "chunk_tokens" in kv_connector_extra_config'
    ),
    "hash_algorithm": _Fact(
        "how blocks are hashed", "start both with the same --prefix-caching-hash-algo"
    ),
    "hash_seed": _Fact(
        "what the hashes begin with",
        "set PYTHONHASHSEED to the same number for both, or for neither",
        frozenset({"hash_algorithm"}),
    ),
    "tensor_parallel": _Fact(
        "ranks that a layer is split over", "start both with the same --tensor-parallel-size"
    ),
    "pipeline_parallel": _Fact(
        "ranks that layers are spread over", "start both with the same --pipeline-parallel-size"
    ),
    "layer_partition": _Fact(
        "which rank has which layers",
        "set VLLM_PP_LAYER_PARTITION to the same for both",
        frozenset({"pipeline_parallel"}),
    ),
    "attention": _Fact(
        "the attention backend; on a CPU, with its instruction set",
        "start both with the same --attention-backend; CPUs share only with CPUs of the same "
        "instruction set",
        _MODEL | {"dtype", "kv_cache_dtype", "block_tokens"},
    ),
    "page_order": _Fact(
        "the order of heads and tokens in a page",
        "set VLLM_KV_CACHE_LAYOUT to the same for both",
        _SHAPE,
    ),
    "layers": _Fact(
        "the layers that have KV", "give both the same model", _SHAPE | {"architectures"}
    ),
    "pages": _Fact(
        "the shape of a page",
        "start both with the same options",
        _SHAPE | {"architectures", "page_order", "layers"},
    ),
    "hash_tokens": _Fact(
        "tokens that vLLM hashes together", "start both with the same options", _SHAPE
    ),
    "layer_groups": _Fact("the layers that have KV, by group", "give both the same model", _SHAPE),
    "context_parallel": _Fact(
        "ranks that a context is split over",
        "start both with the same --decode-context-parallel-size",
    ),
    "block_bytes": _Fact(
        "bytes of a block",
        "start both with the same options",
        _SHAPE | {"layers", "layer_groups", "pages", "chunk_tokens"},
    ),
}
_OTHER = "start both with the same version of lmkv and the same settings"


@dataclass(frozen=True, slots=True)
class Side:
    """One namespace: its name, and what its ``meta.json`` says."""

    name: str
    facts: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """As its engines were given it."""
        return str(self.about.get("model") or self.facts.get("model") or "?")


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that differs. ``ours`` and ``theirs`` are for people: long ones are shortened."""

    fact: str
    ours: str
    theirs: str
    words: str
    advice: str

    @property
    def text(self) -> str:
        return f"{self.fact} {self.ours} / {self.theirs} ({self.words}): {self.advice}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two namespaces. ``also``: facts that differ, if not by themselves, because of the causes."""

    ours: Side
    theirs: Side
    causes: Sequence[Difference]
    also: Sequence[str]

    @property
    def shares(self) -> bool:
        return not self.causes


def compare(ours: Side, theirs: Side) -> Comparison:
    """What keeps engines of these two namespaces from sharing."""
    names = [*_FACTS, *sorted((ours.facts.keys() | theirs.facts.keys()) - _FACTS.keys())]
    differing = [name for name in names if ours.facts.get(name) != theirs.facts.get(name)]
    causes, also = [], []
    for name in differing:
        if _follows(name, ours, theirs, differing):
            also.append(name)
        else:
            causes.append(_difference(name, ours, theirs))
    return Comparison(ours, theirs, causes, also)


def _follows(name: str, ours: Side, theirs: Side, differing: Iterable[str]) -> bool:
    if name != "tier" and ("tier" in ours.facts) != ("tier" in theirs.facts):
        return True  # a tier and a connector are told other things
    if name not in _FACTS:
        return False
    if name == "hash_seed" and not any(_is_private(side) for side in (ours, theirs)):
        return False  # two numbers differ by themselves
    return not _FACTS[name].follows.isdisjoint(differing)


def _difference(name: str, ours: Side, theirs: Side) -> Difference:
    fact = _FACTS.get(name, _Fact("a fact that this lmkv does not know", _OTHER))
    values = [_shown(side.facts.get(name)) for side in (ours, theirs)]
    words, advice = fact.words, fact.advice
    if name == "model":
        words, advice = _model_words(ours, theirs)
    elif name == "hash_seed" and _is_private(ours) | _is_private(theirs):
        words = "xxhash begins with a random number in each engine"
        advice = (
            "set PYTHONHASHSEED to the same number for both, or start both with "
            "--prefix-caching-hash-algo sha256_cbor"
        )
    return Difference(name, values[0], values[1], words, advice)


def _is_private(side: Side) -> bool:
    return str(side.facts.get("hash_seed", "")).startswith(PRIVATE_SEED)


def _model_words(ours: Side, theirs: Side) -> tuple[str, str]:
    local = [str(side.facts.get("model", "")).startswith("weights ") for side in (ours, theirs)]
    places = f"{ours.model} and {theirs.model}"
    if all(local):
        if ours.model == theirs.model:
            places = f"{ours.model}, then and now or here and there,"
        return (
            "the weights or config.json are not the same files",
            f"{places} hold other files: copy one over the other, or give both the same revision",
        )
    if any(local):
        return (
            "one model is a folder, the other a name of a hub",
            f"{places}: give both the folder, or both the name",
        )
    if ours.model == theirs.model:
        return "another revision of the model", "start both with the same --revision"
    return "the model", "give both the same --model"


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if text.startswith("weights "):
        return text[:20] + "..."
    return (text if len(text) <= 60 else text[:57] + "...") or '""'


def nearest_pairs(sides: Iterable[Side]) -> list[Comparison]:
    """For namespaces that look like the same model, the pairs that differ least: a tree over all
    of them, so that following the advice for each pair brings them together.
    """
    found: list[Comparison] = []
    for first, *others in _groups(list(sides)):
        nearest = [compare(first, other) for other in others[: MOST_COMPARED - 1]]
        while nearest:
            pair = min(nearest, key=_distance)
            found.append(pair)
            nearest.remove(pair)
            nearest = [min(compare(pair.theirs, n.theirs), n, key=_distance) for n in nearest]
    return found


def _distance(pair: Comparison) -> tuple[int, int]:
    return len(pair.causes), len(pair.also)


def _groups(sides: list[Side]) -> list[list[Side]]:
    """Sides of one model by any of its names, in their order."""
    groups: list[list[Side]] = []
    for side in sides:
        joined = [group for group in groups if any(_look_alike(side, other) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([*(other for group in joined for other in group), side])
    return groups


_LOOKS: tuple[Callable[[Side], object], ...] = (
    lambda side: side.facts.get("model"),
    lambda side: side.facts.get("hf_config"),
    lambda side: os.path.basename(str(side.about.get("model") or "").rstrip("/")).lower(),
)


def _look_alike(ours: Side, theirs: Side) -> bool:
    return any(look(ours) and look(ours) == look(theirs) for look in _LOOKS)
