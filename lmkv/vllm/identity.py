"""What this vLLM engine's KV is made of: the facts of its namespace, found by each worker."""

import hashlib
import itertools
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_utils import DEFAULT_NONE_HASH_SEED
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from lmkv.config import Config
from lmkv.namespace import Fact, Namespace
from lmkv.vllm.groups import layer_specs, needs_all
from lmkv.vllm.layout import Layout, Page, Placed
from lmkv.weights import weights_id

# Of a model's config: where it came from and what wrote it. ``auto_map`` names the files of a
# model's own code, with the repository before them only where they were downloaded.
_NOT_OF_THE_MODEL = frozenset({"_name_or_path", "transformers_version", "_commit_hash", "auto_map"})


def refusal(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, chunk_tokens: int = 0) -> str:
    """Why lmkv cannot cache for this model and configuration; "" if it can. ``chunk_tokens`` is the
    setting: of a model with several groups vLLM may choose the size of blocks.
    """
    groups = kv_cache_config.kv_cache_groups
    if not groups:
        return "the model has no KV cache"
    if not vllm_config.cache_config.enable_prefix_caching:
        return "vLLM's prefix caching is off (by request, or because the model cannot do it)"
    if vllm_config.parallel_config.decode_context_parallel_size > 1:
        return "decode context parallelism spreads a block over ranks"
    if vllm_config.parallel_config.prefill_context_parallel_size > 1:
        return "prefill context parallelism spreads a block over ranks"
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        return "its weights can be replaced while it runs (weight_transfer_config)"
    sizes = sorted({group.kv_cache_spec.block_size for group in groups})
    if len(sizes) > 1:
        return f"its KV cache groups have blocks of several sizes ({_and(sizes)} tokens)"
    hashed = getattr(vllm_config.cache_config, "hash_block_size", None)
    if hashed not in (None, *sizes):
        return f"blocks of {sizes[0]} tokens are hashed {hashed} tokens at a time"
    for group in groups:
        if reason := _group_refusal(group, vllm_config, alone=len(groups) == 1):
            return reason
    if not any(needs_all(group.kv_cache_spec) for group in groups):
        return "none of its KV cache groups has full attention"
    if len(groups) > 1 and chunk_tokens % sizes[0]:
        near = max(1, chunk_tokens // sizes[0]) * sizes[0]
        return f"its blocks have {sizes[0]} tokens, and chunk_tokens must be a multiple: set {near}"
    return ""


def _group_refusal(group: KVCacheGroupSpec, vllm_config: VllmConfig, *, alone: bool) -> str:
    cached: tuple[type, ...] = (FullAttentionSpec, MLAAttentionSpec)
    if not alone:
        cached = (*cached, SlidingWindowSpec)
    for spec in layer_specs(group.kv_cache_spec):
        if type(spec) is MambaSpec and not alone:
            if spec.mamba_cache_mode != "align":
                return f"its layers' states are not kept (mamba_cache_mode {spec.mamba_cache_mode})"
            if vllm_config.speculative_config is not None:
                return "with speculation its layers' states may be those of rejected tokens"
            continue
        if type(spec) not in cached:
            return f"its KV cache is of a kind that lmkv does not cache ({type(spec).__name__})"
        if getattr(spec, "non_causal", False):
            return "its attention is not causal, so its KV depends on later tokens"
        if spec.tokens_per_state != 1 or spec.prefix_replay_tokens or not spec.prefix_cacheable:
            return "its KV cannot be reused block by block"
    if group.host_resident or not group.enable_kv_transfer:
        return "a part of its KV cache is not to be transferred"
    return ""


def _and(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def layers_in_order(kv_cache_config: KVCacheConfig) -> list[list[str]]:
    """The layers that own KV, of each group, in the order in which vLLM places them. Groups come in
    an order in which the first has full attention.
    """
    placed = [layer for tensor in kv_cache_config.kv_cache_tensors for layer in tensor.layers]
    if len(kv_cache_config.kv_cache_groups) == 1:
        return [placed]
    groups = sorted(
        kv_cache_config.kv_cache_groups, key=lambda group: not needs_all(group.kv_cache_spec)
    )
    of_groups = [[layer for layer in placed if layer in group.layer_names] for group in groups]
    return [layers for layers in of_groups if layers]  # some are on other ranks


def make_namespace(
    vllm_config: VllmConfig,
    config: Config,
    layout: Layout,
    page_order: str,
    block_tokens: int,
    groups: Sequence[KVCacheGroupSpec] = (),
) -> Namespace:
    """The namespace of one worker's KV; every rank of an engine comes to the same. ``groups`` are
    the model's.

    Reads the model's weight files (see ``lmkv.weights.weights_id``), so it blocks on the
    disk; call it while the engine starts.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    pipeline = parallel.pipeline_parallel_size
    layers = [page.layer for page in layout.pages]
    if len(groups) > 1:  # they share their pages
        layers = [layer for group in groups for layer in group.layer_names]
    facts: dict[str, Fact] = {
        **_model_facts(vllm_config),
        **_hash_facts(vllm_config),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization or ""),
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "block_tokens": block_tokens,
        "chunk_tokens": config.chunk_tokens,
        "page_order": page_order,
        "attention": _attention(vllm_config, layers),
        "tensor_parallel": parallel.tensor_parallel_size,
        "pipeline_parallel": pipeline,
        "namespace": config.namespace,
    }
    if pipeline == 1:
        facts["layers"] = layers
        facts["pages"] = [
            f"{len(list(same))} x {page}"
            for page, same in itertools.groupby(_page_text(page) for page in layout.pages)
        ]
        facts["block_bytes"] = layout.block_bytes
    else:
        # Ranks hold different layers and share the namespace; each has files of its own.
        facts["layer_partition"] = os.environ.get("VLLM_PP_LAYER_PARTITION", "")
        facts["pages"] = sorted({_page_text(page) for page in layout.pages})
    if len(groups) > 1:
        facts["groups"] = [_group_text(group, layers=pipeline == 1) for group in groups]
        # What lies where in a block: ``pages`` are of all groups together.
        facts["placed"] = (
            [f"{one.place}+{one.offset} {one.page.layer} {_own(one)}" for one in layout.placed]
            if pipeline == 1
            else sorted({_own(one) for one in layout.placed})
        )
    return Namespace(facts)


def about(vllm_config: VllmConfig, config: Config) -> dict[str, Fact]:
    """For people who look into a directory, and ``lmkv doctor``; no part of the namespace. It says
    this of the engine that was the first of its namespace in the directory.
    """
    return {
        "model": str(vllm_config.model_config.model),
        "kv_cache_layout": str(vllm_config.cache_config.kv_cache_layout or ""),
        "directories": list(config.path),
        "host": socket.gethostname(),
    }


def has_random_seed(vllm_config: VllmConfig) -> bool:
    """Whether vLLM seeds its block hashes at random, so that no other engine's can match."""
    algorithm = vllm_config.cache_config.prefix_caching_hash_algo
    return algorithm.startswith("xxhash") and "PYTHONHASHSEED" not in os.environ


def _page_text(page: Page) -> str:
    return f"{'x'.join(map(str, page.shape))} {str(page.dtype).removeprefix('torch.')}"


def _own(placed: Placed) -> str:
    return f"{_page_text(placed.page)} {placed.order}".rstrip()


def _group_text(group: KVCacheGroupSpec, *, layers: bool) -> str:
    text = ", ".join(sorted({_spec_text(spec) for spec in layer_specs(group.kv_cache_spec)}))
    return f"{text}: {' '.join(group.layer_names)}" if layers else text


def _spec_text(spec: Any) -> str:
    kind = type(spec).__name__
    if isinstance(spec, MambaSpec):
        # Of the models that have states alone.
        from vllm.model_executor.layers.mamba.mamba_utils import get_conv_state_layout

        states = " ".join(
            f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
            for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)
        )
        return f"{kind} {spec.mamba_type.name} {states} {get_conv_state_layout()}"
    window = getattr(spec, "sliding_window", None)
    return f"{kind}{f' {window}' if window else ''} {spec.num_kv_heads}x{spec.head_size}"


def _model_facts(vllm_config: VllmConfig) -> dict[str, Fact]:
    model = vllm_config.model_config
    facts: dict[str, Fact] = {
        "model": _model_id(model),
        "architectures": list(getattr(model.hf_config, "architectures", None) or []),
        "hf_overrides": _canonical(model.hf_overrides),
        "hf_config": _config_digest(model.hf_config),
        "hf_config_path": _elsewhere(model.hf_config_path),
        "code_revision": str(model.code_revision or ""),
        "vllm": ".".join(vllm.__version__.split(".")[:2]),
    }
    if draft := _draft_model(vllm_config.speculative_config):
        facts["draft_model"] = _model_id(draft)  # its layers have KV too
    if processor := getattr(model.multimodal_config, "mm_processor_kwargs", None):
        facts["mm_processor_kwargs"] = _canonical(processor)
    if vllm_config.load_config.load_format == "dummy":
        facts["dummy_weights_seed"] = model.seed
    if any(rope.get("rope_type") == "longrope" for rope in _rope_parameters(model.hf_config)):
        # vLLM picks longrope's factors by the model length that it was started with.
        facts["max_model_len"] = model.max_model_len
    return facts


def _draft_model(speculative: Any) -> Any:
    """The draft model's config; None where the model drafts for itself or nothing drafts."""
    draft = getattr(speculative, "draft_model_config", None)
    # Without a draft model (n-grams, say) vLLM puts the target's there.
    return None if draft is getattr(speculative, "target_model_config", None) else draft


def _elsewhere(path: str | None) -> str:
    """A name of a hub; "" for a local path, whose contents ``hf_config`` has."""
    return "" if path is None or Path(path).exists() else path


def _config_digest(hf_config: Any) -> str:
    """64 hex digits of what the model's config says, wherever it lies and whoever reads it."""
    text = json.dumps(_plain(hf_config.to_dict()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """``value`` in terms of JSON, the same in every process."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        items = ((str(key), inner) for key, inner in value.items())
        return {key: _plain(inner) for key, inner in items if key not in _NOT_OF_THE_MODEL}
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(inner), sort_keys=True) for inner in value)
    if callable(to_dict := getattr(value, "to_dict", None)):
        return _plain(to_dict())
    if isinstance(value, Iterable):
        return [_plain(inner) for inner in value]
    return type(value).__qualname__  # its text may hold an address


def _model_id(model: Any) -> str:
    """A local model is what its weights are, wherever it lies; any other goes by its name."""
    path = Path(model.model)
    if path.exists() and (weights := weights_id(path)):
        return f"weights {weights}"
    elsewhere = getattr(model, "model_weights", "") or ""
    commit = getattr(model.hf_config, "_commit_hash", "") or ""
    return f"{model.model} {elsewhere} revision {model.revision or ''} commit {commit}"


def _hash_facts(vllm_config: VllmConfig) -> dict[str, Fact]:
    if has_random_seed(vllm_config):
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        seed = f"private to engine {transfer.engine_id}"
    else:
        seed = os.environ.get("PYTHONHASHSEED", DEFAULT_NONE_HASH_SEED)
    return {
        "hash_algorithm": vllm_config.cache_config.prefix_caching_hash_algo,
        "hash_seed": seed,
    }


def _attention(vllm_config: VllmConfig, layers: list[str]) -> list[str]:
    """The attention backends; CPU attention packs K for the instruction set it uses."""
    context = vllm_config.compilation_config.static_forward_context
    found = set()
    for layer in (context[name] for name in layers if name in context):
        name = layer.get_attn_backend().get_name()
        isa = getattr(layer, "isa", None)
        found.add(f"{name} {isa} {torch.backends.cpu.get_cpu_capability()}" if isa else name)
    return sorted(found)


def _rope_parameters(hf_config: Any) -> list[Mapping[str, Any]]:
    """All rope parameter dicts of a model config, its text part and per-layer-type ones too."""
    found: list[Mapping[str, Any]] = []
    for config in (hf_config, getattr(hf_config, "text_config", None)):
        for name in ("rope_parameters", "rope_scaling"):
            value = getattr(config, name, None)
            if isinstance(value, Mapping):
                found.append(value)
                found.extend(inner for inner in value.values() if isinstance(inner, Mapping))
    return found


def _canonical(overrides: Any) -> str:
    if callable(overrides):
        return str(getattr(overrides, "__qualname__", repr(overrides)))
    return json.dumps(overrides, sort_keys=True, default=str) if overrides else ""
