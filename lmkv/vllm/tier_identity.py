"""What an offloading tier is told about the engine: its settings, its namespace, its keys."""

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import vllm
from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_utils import DEFAULT_NONE_HASH_SEED
from vllm.v1.kv_offload.base import OffloadingSpec, OffloadKey
from vllm.v1.kv_offload.config import OffloadingConfig

from lmkv.config import Config
from lmkv.errors import ConfigError
from lmkv.namespace import Fact, Namespace
from lmkv.weights import weights_id

# Settings of the connector that mean nothing here, and what to do instead.
_NOT_OF_A_TIER = {
    "chunk_tokens": "vLLM makes the chunks: set blocks_per_chunk, beside secondary_tiers",
    "load_policy": "vLLM decides what is loaded",
    "store_generated": "vLLM decides what is stored: set offload_prompt_only, beside "
    "secondary_tiers",
    "store_tail": "vLLM decides what is stored",
    "transfer": "vLLM copies between the GPU and its own host memory",
}

_WEIGHTS = "weights "  # begins the fact of a model that is known by them

# What an entry of secondary_tiers may have beside lmkv's settings.
_OF_AN_ENTRY = frozenset(
    {"type", "module_path", "backpressure", "locality", "enable_kv_events", "one_host"}
)


def settings(
    given: Mapping[str, object], environ: Mapping[str, str], spec: OffloadingSpec
) -> Config:
    """The settings of a tier. Raises ConfigError as ``Config.from_sources``, and for a setting
    that means nothing to a tier.
    """
    for name, instead in _NOT_OF_A_TIER.items():
        if name in given:
            raise ConfigError(f"{name}: is no setting of a tier; {instead}")
    config = Config.from_sources(given, environ)
    return replace(config, chunk_tokens=chunk_tokens(spec))


def label(tier_type: str, given: Mapping[str, object], spec: OffloadingSpec) -> str:
    """A tier in metrics, as vLLM has it: "1:LMKVTier" is the first entry. vLLM does not tell a tier
    which it is, so it is the first that has the settings ``given``.
    """
    entries = getattr(spec, "secondary_tier_configs", ())
    for number, entry in enumerate(entries, 1):
        of_lmkv = {name: value for name, value in entry.items() if name not in _OF_AN_ENTRY}
        if entry.get("type") == tier_type and of_lmkv == given:
            return f"{number}:{tier_type}"
    return tier_type


def chunk_tokens(spec: OffloadingSpec) -> int:
    """Tokens in a chunk; where groups of layers differ in that, of the longest."""
    return int(max(spec.tokens_per_block) * spec.blocks_per_chunk)


def is_one_host(given: object) -> bool:
    """The setting ``one_host``. Raises ConfigError."""
    if not isinstance(given, bool):
        raise ConfigError(f"one_host: expected true or false, got {given!r}")
    return given


def refusal(config: OffloadingConfig, *, one_host: bool) -> str:
    """Why a tier cannot keep what this engine's workers compute; "" if it can.

    ``one_host``: the user says that all workers are on this host. vLLM tells a tier only how many
    there are, and on each host they have a CPU cache of their own: half of a row would be empty.
    """
    parallel = config.parallel
    # Which tokens lie where is up to --cp-kv-cache-interleave-size, which a tier is not told.
    if parallel.dcp_size > 1:
        return "decode context parallelism spreads a block over ranks"
    if parallel.pcp_size > 1:
        return "prefill context parallelism spreads a block over ranks"
    workers = parallel.world_size
    has_gpus = current_platform.is_cuda_alike() or current_platform.is_xpu()
    if has_gpus and current_platform.device_count() < workers:
        return (
            f"{workers} workers are more than this host has GPUs, and its CPU cache is all there is"
        )
    # vLLM keeps one copy only where it knows that all are on one host.
    if workers > 1 and not one_host and not config.replicated_layout:
        return (
            f"a tier is not told on how many hosts {workers} workers are, and this host's CPU "
            'cache is all there is: if all are on this one, say so by "one_host": true'
        )
    return ""


def is_known_by_name_only(namespace: Namespace) -> bool:
    return not str(namespace.facts["model"]).startswith(_WEIGHTS)


def make_namespace(spec: OffloadingSpec, config: Config, row_bytes: int) -> Namespace:
    """The namespace of a tier's chunks, each a row of vLLM's CPU cache.

    Reads the model's weight files, so it blocks on the disk; call it while the engine starts.
    The hash algorithm is not told, and need not be: keys of different ones are never equal.
    """
    told: OffloadingConfig = spec.config
    parallel = told.parallel
    # Layers lie where kv_cache_layout says, or, in the canonical form, all in its own order.
    form = "canonical" if told.canonical_layout else "direct"
    facts: dict[str, Fact] = {
        "tier": f"{form}, {'one copy' if spec.replicated_layout else 'all workers'}",
        "model": _model(told.model.name),
        "vllm": ".".join(vllm.__version__.split(".")[:2]),
        "dtype": told.model.dtype,
        "block_tokens": int(max(spec.tokens_per_block)),
        "chunk_tokens": config.chunk_tokens,
        "hash_tokens": told.cache.tokens_per_hash,
        "layer_groups": [
            f"{group.tokens_per_block} tokens: {' '.join(group.layer_names)}"
            for group in told.groups
        ],
        "page_order": told.kv_cache_layout or "",
        "block_bytes": row_bytes,
        "tensor_parallel": parallel.tp_size,
        "pipeline_parallel": parallel.pp_size,
        "layer_partition": os.environ.get("VLLM_PP_LAYER_PARTITION", ""),
        "hash_seed": os.environ.get("PYTHONHASHSEED", DEFAULT_NONE_HASH_SEED),
        "namespace": config.namespace,
    }
    return Namespace(facts)


def about(told: OffloadingConfig, config: Config) -> dict[str, Fact]:
    """For people who look into a directory; no part of the namespace."""
    return {
        "model": told.model.name,
        "directories": list(config.path),
        "host": socket.gethostname(),
    }


def tier_key(key: OffloadKey) -> bytes:
    """The 32-byte key of a chunk: of the hash of its last block and its group of layers."""
    return hashlib.sha256(key).digest()


def _model(name: str) -> str:
    """A local model is what its weights are, wherever it lies; any other goes by its name."""
    path = Path(name)
    if path.exists() and (weights := weights_id(path)):
        return f"{_WEIGHTS}{weights}"
    return name


def request_keys(context: Any) -> Mapping[OffloadKey, int]:
    """All keys of a request, in the order of its prompt, and the token behind each.

    vLLM has no other way to list them. Without it nothing is found (``begin_of``).
    """
    keys: Mapping[OffloadKey, int] = getattr(context, "_offload_key_positions", {})
    return keys
