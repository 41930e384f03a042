"""A real vLLM engine on the CPU in this process, as benchmarks make it; its counters of lmkv."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 32
IMPORTED = [
    "lmkv.vllm",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
]
Connector = tuple[str, str]  # a class, and where it is
CONNECTOR: Connector = ("LMKVConnector", "lmkv.vllm")


@functools.cache
def engine_processes(**environment: str) -> ForkServerContext:
    """Where processes for engines come from: they are forked from one that has imported vLLM, since
    that takes longer than the rest of a start.

    ``environment``: what is read on import. It is set in this process too, and must be the same in
    every call: there is one process to fork from.
    """
    os.environ.update(environment, VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def make_engine(
    model: Path,
    settings: dict[str, Any] | None,
    connector: Connector = CONNECTOR,
    **arguments: Any,
) -> Any:
    """An ``LLMEngine`` whose engine core runs in this process, without compilation; in float32 on
    the CPU, in bfloat16 and a tenth of its memory on a GPU.

    ``settings`` are the connector's (``kv_connector_extra_config``); None is vLLM without one.
    ``arguments`` are vLLM's ``EngineArgs``.
    """
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    transfer = {
        "kv_connector": connector[0],
        "kv_connector_module_path": connector[1],
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            **_of_platform(),
            block_size=BLOCK_TOKENS,
            enforce_eager=True,
            disable_log_stats=settings is None,
            kv_transfer_config=None if settings is None else transfer,
            **arguments,
        )
    )
    core = engine.engine_core.engine_core
    core.step_fn = functools.partial(_step, core, core.step_fn)
    return engine


def _of_platform() -> dict[str, Any]:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return {"dtype": "float32"}
    return {"dtype": "bfloat16", "gpu_memory_utilization": 0.1}


def _step(core: Any, step: Callable[[], tuple[Any, bool]]) -> tuple[Any, bool]:
    """As the engine core in a process of its own does it, which vLLM's server has: a step that had
    nothing to compute lets other threads have the processor for a moment.
    """
    outputs, is_executed = step()
    if not is_executed and core.scheduler.has_requests():
        time.sleep(0.001)
    return outputs, is_executed


def counters_of(engine: Any) -> dict[str, float]:
    """The counters and gauges of an ``LLMEngine`` that are lmkv's, since its start."""
    found: dict[str, float] = {}
    for metric in engine.get_metrics():
        name = metric.name.removeprefix("vllm:")
        if name.startswith("lmkv_") and hasattr(metric, "value"):  # no histogram
            name = name.removeprefix("lmkv_")
            found[name] = found.get(name, 0) + metric.value
    return found
