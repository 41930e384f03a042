"""The command line and the environment of one engine; starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lmkv
from lmkv.demo.machine import Machine
from lmkv.serving import kv_transfer_config, server_command

HOST = "127.0.0.1"
SERVED_NAME = "demo"
"""What the engines call the model, whatever its path."""

_CPU_BLOCK_TOKENS = 32  # vLLM's CPU attention takes multiples of 32
_KV_SHARE_OF_CPU_MEMORY = 8  # an engine's KV cache gets an eighth of its share of the memory
_CPU_HOST_MEMORY = "512MiB"  # lmkv's buffers: enough for the demo, and four engines share the RAM


@dataclass(frozen=True)
class EngineSpec:
    """One engine to start.

    `kind` is "plain" or "lmkv"; `directory` is where lmkv keeps KV. `position` of `engines`: which
    one it is, for its share of the machine. `max_model_len`: 0 leaves it to vLLM.
    """

    name: str
    kind: str
    model: str
    port: int
    machine: Machine
    position: int = 0
    engines: int = 1
    directory: Path | None = None
    max_model_len: int = 0
    extra_arguments: tuple[str, ...] = field(default=())

    @property
    def base_url(self) -> str:
        """Where the engine answers."""
        return f"http://{HOST}:{self.port}"


def command(spec: EngineSpec) -> list[str]:
    """Start vLLM's OpenAI server for this engine."""
    words = server_command(spec.model)
    words += ["--served-model-name", SERVED_NAME, "--host", HOST, "--port", str(spec.port)]
    words += ["--max-model-len", str(spec.max_model_len or "auto")]
    if spec.machine.on_gpu:
        sharing = -(-spec.engines // len(spec.machine.gpus))
        words += ["--gpu-memory-utilization", f"{0.9 / sharing:.2f}"]
    else:
        # float32 is the fast type on CPUs without AMX: half the prefill time of bfloat16.
        # Compiling costs a minute of every start here and saves a tenth of the prefill.
        words += ["--dtype", "float32", "--block-size", str(_CPU_BLOCK_TOKENS), "--enforce-eager"]
    if spec.kind == "lmkv":
        assert spec.directory is not None
        settings = {} if spec.machine.on_gpu else {"host_memory": _CPU_HOST_MEMORY}
        words += ["--kv-transfer-config", kv_transfer_config(spec.directory, **settings)]
    return [*words, *spec.extra_arguments]


def environment(spec: EngineSpec, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The engine's environment: `base` plus what places it on its device.

    The engines that are compared have lmkv's defaults, whatever is set here, and tell nobody.
    """
    values = {name: value for name, value in base.items() if not name.startswith("LMKV_")}
    values |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    values["PYTHONUNBUFFERED"] = "1"
    _make_lmkv_importable(values)
    if spec.machine.on_gpu:
        gpus = spec.machine.gpus
        values["CUDA_VISIBLE_DEVICES"] = gpus[spec.position % len(gpus)]
        return values
    share = int(spec.machine.memory_gib / spec.engines / _KV_SHARE_OF_CPU_MEMORY)
    values.setdefault("VLLM_CPU_KVCACHE_SPACE", str(min(4, max(1, share))))
    # vLLM leaves one core to its scheduler, and a second one when a connector is configured (or
    # none, on two cores). Engines are compared here, so each gets the same number of threads.
    values.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "1")
    return values


def _make_lmkv_importable(values: dict[str, str]) -> None:
    """Lets an engine, which starts in another folder than ours, import lmkv from a checkout."""
    assert lmkv.__path__
    parent = Path(next(iter(lmkv.__path__))).resolve().parent
    if parent.name not in ("site-packages", "dist-packages"):
        known = [path for path in values.get("PYTHONPATH", "").split(os.pathsep) if path]
        values["PYTHONPATH"] = os.pathsep.join([str(parent), *known])
