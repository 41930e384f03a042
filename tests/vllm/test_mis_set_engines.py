"""``lmkv doctor`` names the setting that keeps two engines apart.

Each engine is started as far as its connector's worker side goes: options of ``vllm serve`` through
vLLM's own parsing, real tensors, lmkv's real worker, which writes the namespace into the directory.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner
from vllm.config import set_current_vllm_config
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from lmkv.cli import app

BLOCKS = 8


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model, with weights."""
    return weigh(shutil.copytree(tiny_model, tmp_path / "models" / "tiny"), 0)


def weigh(folder: Path, value: int) -> Path:
    save_file({"model.norm.weight": torch.full((64,), float(value))}, folder / "model.safetensors")
    return folder


def start(model, root, *, environ=(), layout=KVCacheLayout.LBHNC, settings=(), **options):
    """One engine's worker, started and stopped; what it leaves is its namespace."""
    extra = {"path": str(root), "host_memory": "64MiB", "chunk_tokens": 128, **dict(settings)}
    arguments = {
        "model": str(model),
        "dtype": "float32",
        "block_size": 32,
        "max_model_len": 1024,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "kv_transfer_config": {
            "kv_connector": "LMKVConnector",
            "kv_connector_module_path": "lmkv.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": extra,
        },
        **options,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONHASHSEED", raising=False)
        for name, value in dict(environ).items():
            patch.setenv(name, value)
        config = EngineArgs(**arguments).create_engine_config()
        connector = worker_of(config, layout)
    connector.shutdown()


def worker_of(config, layout):
    model, parallel = config.model_config, config.parallel_config
    names = [f"model.layers.{i}.self_attn.attn" for i in range(model.get_num_layers(parallel))]
    heads, kv_heads = model.get_num_attention_heads(parallel), model.get_num_kv_heads(parallel)
    block_size, head_size = config.cache_config.block_size, model.get_head_size()
    dtype = kv_cache_dtype_str_to_dtype(config.cache_config.cache_dtype, model)
    spec = FullAttentionSpec(
        block_size=block_size, num_kv_heads=kv_heads, head_size=head_size, dtype=dtype
    )
    with set_current_vllm_config(config):
        for name in names:
            layer = Attention(
                heads, head_size, 1.0, kv_heads, cache_config=config.cache_config, prefix=name
            )
            layer.isa = _get_attn_isa(model.dtype, block_size, head_size)
    page = spec.page_size_bytes
    cache = KVCacheConfig(
        num_blocks=BLOCKS,
        kv_cache_tensors=[KVCacheTensor(page * BLOCKS * len(names), names, page * BLOCKS, page)],
        kv_cache_groups=[KVCacheGroupSpec(names, spec)],
    )
    connector = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, cache)
    connector.register_kv_caches(allocate_kv_cache(cache, torch.device("cpu"), layout))
    assert connector.get_handshake_metadata().refusal == ""
    return connector


def doctor(*arguments):
    words = [str(argument) for argument in arguments]
    told = CliRunner().invoke(app, ["doctor", *words, "--json"])
    read = CliRunner().invoke(app, ["doctor", *words])
    assert told.exit_code == read.exit_code == 0, told.stdout + told.stderr
    return json.loads(told.stdout), read.stdout


MIS_SET = {
    "block size": ({"block_size": 16}, "block_tokens", "--block-size"),
    "dtype": ({"dtype": "bfloat16"}, "dtype", "--dtype"),
    "KV dtype": ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype", "--kv-cache-dtype"),
    "chunk size": ({"settings": {"chunk_tokens": 256}}, "chunk_tokens", '"chunk_tokens"'),
    "own string": ({"settings": {"namespace": "tenant"}}, "namespace", '"namespace"'),
    "hash algorithm": (
        {"prefix_caching_hash_algo": "sha256_cbor"},
        "hash_algorithm",
        "--prefix-caching-hash-algo",
    ),
    "hash algorithm of a random seed": (
        {"prefix_caching_hash_algo": "xxhash"},
        "hash_algorithm",
        "--prefix-caching-hash-algo",
    ),
    "hash seed": ({"environ": {"PYTHONHASHSEED": "7"}}, "hash_seed", "PYTHONHASHSEED"),
    "tensor parallel": (
        {"tensor_parallel_size": 2},
        "tensor_parallel",
        "--tensor-parallel-size",
    ),
    "pipeline parallel": (
        {"pipeline_parallel_size": 2},
        "pipeline_parallel",
        "--pipeline-parallel-size",
    ),
    "overrides": ({"hf_overrides": {"rope_theta": 7.0}}, "hf_overrides", "--hf-overrides"),
    "load format": ({"load_format": "dummy"}, "dummy_weights_seed", "--load-format"),
    "layout": ({"layout": KVCacheLayout.LBNHC}, "page_order", "VLLM_KV_CACHE_LAYOUT"),
}


@pytest.fixture(scope="module")
def first(tiny_model, tmp_path_factory):
    """A model, and the directory that an engine with it has left."""
    folder = tmp_path_factory.mktemp("first")
    model = weigh(shutil.copytree(tiny_model, folder / "tiny"), 0)
    start(model, folder / "root")
    return model, folder / "root"


@pytest.mark.parametrize("name", MIS_SET)
def test_the_setting_that_is_wrong_is_named_with_what_to_do(first, root, name):
    wrong, field, advice = MIS_SET[name]
    model, left = first
    shutil.copytree(left, root)
    start(model, root, **wrong)
    only_cause(root, field, advice)


def only_cause(root, field, advice):
    """Of the two namespaces that are there, this field is named, and no other."""
    told, read = doctor(root)
    assert len(told["namespaces"]) == 2
    (pair,) = told["pairs"]
    assert not pair["shares"]
    (cause,) = pair["fields"]
    assert cause["field"] == field
    assert cause["values"][0] != cause["values"][1]
    assert advice in cause["advice"]
    names = [one["name"] for one in told["namespaces"]]
    assert sorted(pair["namespaces"]) == sorted(names)
    (line,) = [line for line in read.splitlines() if line.startswith(f"  {field} ")]
    assert advice in line
    assert " do not share:" in read
    # And without the rest.
    compared, _ = doctor(root, "--compare", *pair["namespaces"])
    assert compared["pairs"] == [pair]
    return pair


def test_a_random_hash_seed_is_named_where_both_engines_are_set_alike(model, root):
    for _ in range(2):
        start(model, root, prefix_caching_hash_algo="xxhash")
    only_cause(root, "hash_seed", "--prefix-caching-hash-algo sha256_cbor")


def test_two_hash_seeds_are_named(model, root):
    for seed in ("1", "2"):
        start(model, root, prefix_caching_hash_algo="xxhash", environ={"PYTHONHASHSEED": seed})
    pair = only_cause(root, "hash_seed", "PYTHONHASHSEED to the same number")
    assert sorted(pair["fields"][0]["values"]) == ["1", "2"]


@pytest.mark.parametrize("where", ["beside", "in place"])
def test_other_weights_are_named(model, root, where):
    start(model, root)
    tuned = model if where == "in place" else shutil.copytree(model, model.parent / "tuned")
    weigh(tuned, 1)
    start(tuned, root)
    pair = only_cause(root, "model", "hold other files")
    assert set(pair["models"]) == {str(model), str(tuned)}


def test_another_version_of_vllm_is_named(model, root, monkeypatch):
    start(model, root)
    monkeypatch.setattr("vllm.__version__", "0.99.1")
    start(model, root)
    only_cause(root, "vllm", "the same minor version of vLLM")


def test_a_cpu_of_another_instruction_set_is_named(model, root, monkeypatch):
    start(model, root)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "OTHER")
    start(model, root)
    only_cause(root, "attention", "the same instruction set")


def test_engines_that_are_set_alike_share(model, root):
    start(model, root)
    copied = shutil.copytree(model, model.parent / "elsewhere")
    start(copied, root, max_model_len=512, settings={"io_engine": "threads", "store_tail": False})
    told, read = doctor(root)
    (namespace,) = told["namespaces"]
    assert told["pairs"] == []
    assert namespace["about"]["directories"] == [str(root)]
    assert "do not share" not in read
    assert "Engines share with those of their own namespace." in read
    told, read = doctor(root, "--compare", namespace["name"], namespace["name"])
    assert told["pairs"][0]["shares"]
    assert "are one namespace: their engines share." in read


def test_three_engines_are_told_by_the_pairs_that_differ_least(model, root):
    start(model, root)
    start(model, root, block_size=16)
    start(model, root, block_size=16, settings={"chunk_tokens": 256})
    told, _ = doctor(root)
    assert [[f["field"] for f in pair["fields"]] for pair in told["pairs"]] in (
        [["block_tokens"], ["chunk_tokens"]],
        [["chunk_tokens"], ["block_tokens"]],
    )


def test_namespaces_of_two_directories_are_compared_by_their_files(model, root, tmp_path):
    other = tmp_path / "other"
    start(model, root)
    start(model, other, block_size=16)
    files = [next(one.glob("v1/*/meta.json")) for one in (root, other)]
    told, _ = doctor("--compare", *files)
    assert [field["field"] for field in told["pairs"][0]["fields"]] == ["block_tokens"]


def test_engines_that_name_different_sets_of_directories_are_found(model, root, tmp_path):
    other = tmp_path / "other"
    both = [str(root), str(other)]
    start(model, root, settings={"path": both})
    shutil.rmtree(other)
    start(model, other)
    told, _ = doctor(*both)
    (note,) = [note for note in told["notes"] if "sets of directories" in note]
    assert f"{other}; {', '.join(sorted(both))}" in note or str(other) in note


def test_one_of_several_directories_leads_to_the_others(model, root, tmp_path):
    other = tmp_path / "other"
    start(model, root, settings={"path": [str(root), str(other)]})
    told, _ = doctor(root)
    (note,) = [note for note in told["notes"] if "Look at all of them" in note]
    assert f"lmkv doctor {root} {other}" in note


def test_engines_that_each_have_a_directory_of_their_own_are_found(model, root, tmp_path):
    other = tmp_path / "other"
    start(model, root)
    start(model, other)
    told, _ = doctor(root, other)
    assert told["pairs"] == []
    assert any("do not see each other's chunks" in note for note in told["notes"])


def test_where_nothing_was_stored_it_is_said(model, root):
    start(model, root)
    told, _ = doctor(root)
    assert any("Nothing is stored in namespace" in note for note in told["notes"])
    assert os.listdir(root) == ["v1"]
