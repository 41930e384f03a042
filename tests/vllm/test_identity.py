"""Which engines share a namespace, and which never do."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scheduler_harness import STATE, Engine
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

import lmkv
from lmkv.config import Config
from lmkv.vllm import identity
from lmkv.vllm.layout import Layout, Page, Placed

LAYERS = ["model.layers.0.attn", "model.layers.1.attn"]


def layout(size=4096, shape=(1, 2, 32, 32), dtype=torch.float32, layers=LAYERS):
    pages = [Page(name, 1 << 20, size, size, shape, dtype) for name in layers]
    return layout_of(*pages)


def layout_of(*pages):
    return Layout(pages, torch.device("cpu"), 8)


@pytest.fixture
def config(tiny_model, root):
    return copy.deepcopy(Engine(tiny_model, root).config)


def digest(vllm_config, where=None, order="HNC", block_tokens=32, **settings):
    config = Config(path=("/c",), **settings)
    return identity.make_namespace(
        vllm_config, config, where or layout(), order, block_tokens
    ).digest


def test_the_same_engine_again_has_the_same_namespace(config):
    assert digest(config) == digest(copy.deepcopy(config))


def _set(*path_and_value):
    *path, name, value = path_and_value

    def change(config):
        target = config
        for part in path:
            target = getattr(target, part)
        object.__setattr__(target, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("model_config", "dtype", torch.bfloat16),
        _set("model_config", "quantization", "fp8"),
        _set("model_config", "hf_overrides", {"rope_theta": 7}),
        _set("cache_config", "cache_dtype", "fp8"),
        _set("cache_config", "prefix_caching_hash_algo", "sha256_cbor"),
        _set("parallel_config", "tensor_parallel_size", 2),
        _set("parallel_config", "pipeline_parallel_size", 2),
        _set("load_config", "load_format", "dummy"),
        _set("model_config", "hf_config", "sliding_window", 128),
        _set("model_config", "hf_config", "rope_parameters", {"rope_type": "x", "factor": 2.0}),
        _set("model_config", "hf_config_path", "org/config"),
        _set("model_config", "code_revision", "v2"),
    ],
)
def test_an_engine_that_differs_has_another_namespace(config, change):
    before = digest(config)
    change(config)
    assert digest(config) != before


def test_engines_whose_layers_differ_in_another_place_differ(config):
    def pages(*dtypes):
        return layout_of(*(Page("l", 1, 4096, 4096, (1, 2, 32, 32), dtype) for dtype in dtypes))

    half, full = torch.bfloat16, torch.float32
    assert digest(config, pages(half, full, full)) != digest(config, pages(full, half, full))
    _set("parallel_config", "pipeline_parallel_size", 2)(config)
    assert digest(config, pages(half, full)) != digest(config, pages(full, full))
    # Ranks hold different layers.
    assert digest(config, pages(half, full)) == digest(config, pages(full, half, half))


def test_another_minor_version_of_vllm_is_another_namespace(config, monkeypatch):
    digests = []
    for version in ("0.32.0", "0.32.1", "0.33.0"):
        monkeypatch.setattr("vllm.__version__", version)
        digests.append(digest(config))
    assert digests[0] == digests[1] != digests[2]


def test_a_local_config_path_is_what_it_holds(config, tmp_path):
    before = digest(config)
    _set("model_config", "hf_config_path", str(tmp_path))(config)
    assert digest(config) == before


DIGEST = """
import sys
from transformers import AutoConfig
from lmkv.vllm.identity import _config_digest
for path in sys.argv[1:]:
    config = AutoConfig.from_pretrained(path)
    config.odd = {2: {"b", "a", "c"}, 1: object(), "_name_or_path": path}
    print("digest", _config_digest(config))
"""


def test_the_models_config_counts_the_same_in_every_process_and_place(tiny_model, tmp_path):
    text = json.loads((tiny_model / "config.json").read_text())
    for name, change in (
        ("one", {"transformers_version": "4.0", "auto_map": {"AutoConfig": "c.C"}}),
        ("two", {"transformers_version": "5.0", "auto_map": {"AutoConfig": "org/two--c.C"}}),
        ("three", {"rope_theta": 77.0}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(text | change))
    path = str(Path(lmkv.__file__).parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIGEST, *(str(tmp_path / name) for name in names)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, names in enumerate((["one", "three"], ["two"]))
    ]
    lines = "".join(process.communicate(timeout=120)[0] for process in processes).splitlines()
    one, three, two = (line.split()[1] for line in lines if line.startswith("digest "))
    assert len(one) == 64
    assert one == two != three


def test_settings_and_pages_make_the_namespace(config):
    digests = [
        digest(config),
        digest(config, chunk_tokens=512),
        digest(config, namespace="tenant"),
        digest(config, block_tokens=64),
        digest(config, order="NHC"),
        digest(config, layout(shape=(2, 2, 16, 32))),
        digest(config, layout(dtype=torch.bfloat16)),
        digest(config, layout(size=8192)),
        digest(config, layout(layers=LAYERS[:1])),
        digest(config, layout(layers=LAYERS[::-1])),
    ]
    assert len(set(digests)) == len(digests)


def test_what_does_not_touch_kv_does_not_touch_the_namespace(config):
    before = digest(config)
    _set("model_config", "max_model_len", 1024)(config)
    _set("scheduler_config", "max_num_seqs", 3)(config)
    _set("cache_config", "gpu_memory_utilization", 0.5)(config)
    settings = {"io_engine": "threads", "store_tail": False, "host_memory": 1 << 30}
    assert digest(config, **settings) == before


def test_a_copied_model_is_the_same_and_a_tuned_one_is_not(config, tiny_model, tmp_path):
    for name in ("one", "two", "tuned"):
        shutil.copytree(tiny_model, tmp_path / name)
        weights = bytes(200_000) if name != "tuned" else bytes(100_000) + b"x" * 100_000
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    digests = {}
    for name in ("one", "two", "tuned"):
        _set("model_config", "model", str(tmp_path / name))(config)
        digests[name] = digest(config)
    assert digests["one"] == digests["two"] != digests["tuned"]


def test_a_model_of_a_hub_is_known_by_name_revision_and_commit(config):
    digests = set()
    for model, revision, commit in (
        ("org/model", None, None),
        ("org/other", None, None),
        ("org/model", "v2", None),
        ("org/model", None, "abc"),
    ):
        _set("model_config", "model", model)(config)
        _set("model_config", "revision", revision)(config)
        config.model_config.hf_config._commit_hash = commit
        digests.add(digest(config))
    assert len(digests) == 4


def test_weights_that_lie_elsewhere_count(config):
    # A model streamed from an object store has a local directory without weights.
    digests = set()
    for weights in ("s3://bucket/one", "s3://bucket/two"):
        _set("model_config", "model_weights", weights)(config)
        digests.add(digest(config))
    assert len(digests) == 2


def test_a_draft_models_weights_count(config):
    draft = copy.copy(config.model_config)
    object.__setattr__(config, "speculative_config", SimpleNamespace(draft_model_config=draft))
    before = digest(config)
    object.__setattr__(draft, "model", "org/other-draft")
    assert digest(config) != before


def test_an_engine_that_drafts_without_a_model_shares_with_one_that_does_not(config):
    before = digest(config)
    model = config.model_config
    ngram = SimpleNamespace(draft_model_config=model, target_model_config=model)
    object.__setattr__(config, "speculative_config", ngram)
    assert digest(config) == before


def test_with_longrope_the_model_length_counts(config):
    config.model_config.hf_config.rope_parameters = {"rope_type": "longrope"}
    before = digest(config)
    _set("model_config", "max_model_len", 1024)(config)
    assert digest(config) != before


def test_the_hash_seed_is_part_of_it(config, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    digests = {digest(config)}
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        digests.add(digest(config))
    assert len(digests) == 3


def test_a_random_hash_seed_makes_the_namespace_the_engines_own(config, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    _set("cache_config", "prefix_caching_hash_algo", "xxhash_cbor")(config)
    assert identity.has_random_seed(config)
    other = copy.deepcopy(config)
    _set("kv_transfer_config", "engine_id", "another")(other)
    assert digest(config) != digest(other)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert not identity.has_random_seed(config)
    assert digest(config) == digest(other)


def test_the_facts_are_readable(config):
    namespace = identity.make_namespace(config, Config(path=("/c",)), layout(), "HNC", 32)
    facts = json.loads(json.dumps(namespace.facts))
    assert facts["pages"] == ["2 x 1x2x32x32 float32"]
    assert facts["block_bytes"] == 8192


BASE = {"block_size": 32, "num_kv_heads": 2, "head_size": 16, "dtype": torch.float32}
FULL = FullAttentionSpec(**BASE)


def cache_config(*specs):
    groups = [KVCacheGroupSpec([f"l{i}"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)


@pytest.mark.parametrize(
    "spec",
    [
        FULL,
        MLAAttentionSpec(block_size=32, num_kv_heads=1, head_size=576, dtype=torch.bfloat16),
        # A sliding window with a block for every token, as without the hybrid allocator.
        FullAttentionSpec(**BASE, sliding_window=128),
        UniformTypeKVCacheSpecs(block_size=32, kv_cache_specs={"a": FULL, "b": FULL}),
    ],
)
def test_one_group_of_full_attention_is_cached(config, spec):
    assert identity.refusal(config, cache_config(spec)) == ""


WINDOW = SlidingWindowSpec(**BASE, sliding_window=64)


@pytest.mark.parametrize(
    "specs",
    [
        [FULL, FULL],
        [FULL, WINDOW],
        [WINDOW, SlidingWindowSpec(**BASE, sliding_window=128), FULL],
        [WINDOW, UniformTypeKVCacheSpecs(block_size=32, kv_cache_specs={"a": FULL, "b": FULL})],
        [STATE, FULL],
        [STATE, WINDOW, FULL],
    ],
)
def test_windows_and_states_beside_full_attention_are_cached(config, specs):
    assert identity.refusal(config, cache_config(*specs)) == ""


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([], "no KV cache"),
        ([WINDOW], "SlidingWindowSpec"),
        ([WINDOW, WINDOW], "none of its KV cache groups has full attention"),
        ([STATE], "MambaSpec"),
        ([STATE, STATE], "none of its KV cache groups has full attention"),
        (
            [dataclasses.replace(STATE, mamba_cache_mode="none"), FULL],
            "states are not kept (mamba_cache_mode none)",
        ),
        ([FULL, dataclasses.replace(WINDOW, block_size=64)], "several sizes (32 and 64 tokens)"),
        ([FULL, ChunkedLocalAttentionSpec(**BASE, attention_chunk_size=64)], "ChunkedLocal"),
        ([FullAttentionSpec(**BASE, non_causal=True)], "not causal"),
        ([FullAttentionSpec(**BASE, tokens_per_state=4)], "block by block"),
    ],
)
def test_all_else_is_refused_with_the_reason(config, specs, reason):
    assert reason in identity.refusal(config, cache_config(*specs))


@pytest.mark.parametrize("other", [{"host_resident": True}, {"enable_kv_transfer": False}])
def test_groups_that_are_not_to_be_transferred_are_refused(config, other):
    cache = cache_config(FULL, WINDOW)
    cache.kv_cache_groups[1] = KVCacheGroupSpec(["l1"], WINDOW, **other)
    assert "not to be transferred" in identity.refusal(config, cache)


def test_states_with_speculation_are_refused(config):
    object.__setattr__(config, "speculative_config", SimpleNamespace(method="ngram"))
    assert "rejected tokens" in identity.refusal(config, cache_config(STATE, FULL))
    assert identity.refusal(config, cache_config(WINDOW, FULL)) == ""


def groups_text(config, *groups):
    made = identity.make_namespace(
        config, Config(path=("/c",)), layout(), "HNC", 32, [*groups]
    )  # fmt: skip
    return made.facts.get("groups"), made.facts["layers"], made.digest


def test_several_groups_are_a_part_of_the_namespace(config):
    full, window = KVCacheGroupSpec(["l1", "l3"], FULL), KVCacheGroupSpec(["l0", "l2"], WINDOW)
    text, layers, one = groups_text(config, window, full)
    assert text == ["SlidingWindowSpec 64 2x16: l0 l2", "FullAttentionSpec 2x16: l1 l3"]
    assert layers == ["l0", "l2", "l1", "l3"]
    assert one != groups_text(config, full, window)[2]
    text, _, state = groups_text(config, KVCacheGroupSpec(["l0"], STATE), full)
    assert text[0] == "MambaSpec MAMBA2 3x16 float32 4x8 float32 SD: l0"
    assert state != one
    # One group is no part of it: directories from before groups were cached stay valid.
    assert groups_text(config, KVCacheGroupSpec(LAYERS, FULL)) == groups_text(config)
    assert groups_text(config)[:2] == (None, LAYERS)


def test_what_lies_where_is_a_part_of_the_namespace_of_several_groups(config):
    groups = [KVCacheGroupSpec(["l0"], WINDOW), KVCacheGroupSpec(["l1"], FULL)]

    def made(*placed):
        own = [
            Placed(place, 0, Page(layer, 4096, 8192, 4096, (1, 2, 16, 32), dtype), order)
            for place, layer, dtype, order in placed
        ]
        over = dataclasses.replace(layout(), placed=tuple(own))
        return identity.make_namespace(config, Config(path=("/c",)), over, "HNC", 32, groups)

    one = made((0, "l0", torch.bfloat16, "HNC"), (0, "l1", torch.bfloat16, "HNC"))
    assert one.facts["placed"] == [
        "0+0 l0 1x2x16x32 bfloat16 HNC",
        "0+0 l1 1x2x16x32 bfloat16 HNC",
    ]
    others = [
        made((0, "l0", torch.bfloat16, "NHC"), (0, "l1", torch.bfloat16, "HNC")),
        made((0, "l0", torch.uint8, "HNC"), (0, "l1", torch.bfloat16, "HNC")),
        made((1, "l0", torch.bfloat16, "HNC"), (0, "l1", torch.bfloat16, "HNC")),
    ]
    assert len({other.digest for other in (one, *others)}) == 4


def test_weights_that_may_be_replaced_are_refused(config):
    object.__setattr__(config, "weight_transfer_config", SimpleNamespace(backend="nccl"))
    assert "weights can be replaced" in identity.refusal(config, cache_config(FULL))


@pytest.mark.parametrize(("tokens", "refused"), [(None, False), (32, False), (16, True)])
def test_hashes_of_other_than_whole_blocks_are_refused(config, tokens, refused):
    _set("cache_config", "hash_block_size", tokens)(config)
    assert ("16 tokens at a time" in identity.refusal(config, cache_config(FULL))) == refused


@pytest.mark.parametrize("name", ["decode", "prefill"])
def test_context_parallelism_is_refused(config, name):
    _set("parallel_config", f"{name}_context_parallel_size", 2)(config)
    assert "context parallelism" in identity.refusal(config, cache_config(FULL))
