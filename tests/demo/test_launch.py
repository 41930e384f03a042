"""Command lines and environments of engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lmkv
from lmkv.demo import launch
from lmkv.demo.launch import EngineSpec
from lmkv.demo.machine import Machine

CPU = Machine(gpus=(), gpu_memory_gib=0.0, cores=8, memory_gib=64.0)
GPUS = Machine(gpus=("2", "5"), gpu_memory_gib=80.0, cores=8, memory_gib=64.0)


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_engines_listen_on_loopback_only() -> None:
    words = launch.command(EngineSpec("plain-a", "plain", "m", 8123, CPU))
    assert option(words, "--host") == "127.0.0.1"
    assert option(words, "--port") == "8123"
    assert option(words, "--model") == "m"


def test_a_plain_engine_has_no_connector() -> None:
    words = launch.command(EngineSpec("plain-a", "plain", "m", 8123, CPU, directory=Path("/kv")))
    assert "--kv-transfer-config" not in words


def test_an_lmkv_engine_differs_from_a_plain_one_by_the_connector_alone() -> None:
    plain = launch.command(EngineSpec("plain-a", "plain", "m", 8123, CPU))
    words = launch.command(EngineSpec("lmkv-a", "lmkv", "m", 8123, CPU, directory=Path("/kv")))
    assert words[: len(plain)] == plain
    flag, value = words[len(plain) :]
    assert flag == "--kv-transfer-config"
    assert json.loads(value) == {
        "kv_connector": "LMKVConnector",
        "kv_connector_module_path": "lmkv.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"path": "/kv", "host_memory": "512MiB"},
    }


def test_on_a_cpu_all_engines_get_the_same_threads_and_memory() -> None:
    """VLLM reserves cores by itself, more of them when a connector is configured."""
    plain = launch.environment(EngineSpec("plain-a", "plain", "m", 1, CPU, 0, 4), {})
    lmkv_b = launch.environment(EngineSpec("lmkv-b", "lmkv", "m", 2, CPU, 3, 4), {})
    assert plain == lmkv_b
    assert plain["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "1"
    assert plain["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert "CUDA_VISIBLE_DEVICES" not in plain


def test_what_the_user_set_for_the_cpu_is_kept() -> None:
    spec = EngineSpec("plain-a", "plain", "m", 1, CPU, 0, 4)
    values = launch.environment(spec, {"VLLM_CPU_KVCACHE_SPACE": "9"})
    assert values["VLLM_CPU_KVCACHE_SPACE"] == "9"


@pytest.mark.parametrize(("position", "gpu"), [(0, "2"), (1, "5"), (2, "2"), (3, "5")])
def test_gpus_are_given_out_in_turn(position: int, gpu: str) -> None:
    spec = EngineSpec("plain-a", "plain", "m", 1, GPUS, position, 4)
    assert launch.environment(spec, {})["CUDA_VISIBLE_DEVICES"] == gpu
    # Two engines share each GPU.
    assert option(launch.command(spec), "--gpu-memory-utilization") == "0.45"
    assert "--dtype" not in launch.command(spec)


def test_an_engine_alone_on_its_gpu_uses_nearly_all_of_it() -> None:
    spec = EngineSpec("plain-a", "plain", "m", 1, GPUS, 0, 2)
    assert option(launch.command(spec), "--gpu-memory-utilization") == "0.90"


def test_lmkv_can_be_imported_where_the_engine_starts() -> None:
    spec = EngineSpec("lmkv-a", "lmkv", "m", 1, CPU)
    path = launch.environment(spec, {"PYTHONPATH": "/elsewhere"})["PYTHONPATH"]
    root = Path(lmkv.__file__).resolve().parent.parent
    if root.name != "site-packages":
        assert path == f"{root}:/elsewhere"
    else:
        assert path == "/elsewhere"


def test_no_setting_of_lmkv_leaks_into_the_environment() -> None:
    spec = EngineSpec("lmkv-a", "lmkv", "m", 1, CPU)
    base = {"LMKV_CHUNK_TOKENS": "512", "VLLM_NO_USAGE_STATS": "0"}
    values = launch.environment(spec, base)
    assert not [name for name in values if name.startswith("LMKV_")]
    assert values["VLLM_NO_USAGE_STATS"] == "1"
