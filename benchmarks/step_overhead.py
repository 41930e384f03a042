"""Microseconds that lmkv takes of an engine's every step, with many requests running.

    python benchmarks/step_overhead.py [--path DIR] [--running 1,64,512] [--steps 400] [--json -]

Real engines (vLLM on the CPU, a tiny model) decode as many answers at once as ``--running`` says.
Every call that vLLM makes of lmkv's connector is timed, and those of a step are added up: the
scheduler's, which runs on the engine core's thread, and the worker's. Two kinds of steps:

* ``idle``: nothing is to be stored or loaded, as in most steps of a decode.
* ``storing``: another engine, which stores what it generates (``store_generated``). Answers are
  staggered, so that in every step as many chunks are full as are over a long time; with one
  running request few steps store.

Times are by the clock, so a busy machine shows in the 99th percentile; medians are what is held
against the budgets.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_llama import BLOCK_TOKENS, VOCABULARY, save_tiny_llama

CHUNK_TOKENS = 128
BUDGETS_US = {"scheduler": 20.0, "worker": 50.0}  # of idle steps
MODEL_LEN = 4096  # more than any run decodes


class HookClock:
    """Adds up the time spent in calls of a connector's methods."""

    def __init__(self, connector: Any) -> None:
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

        self.seconds = 0.0
        self.calls: dict[str, list[float]] = {}
        self._is_inside = False
        for name in dir(KVConnectorBase_V1):
            if name.startswith("_") or isinstance(getattr(type(connector), name), property):
                continue
            setattr(connector, name, self._timed(name, getattr(connector, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:  # called by another of them
                return method(*args, **kwargs)
            self._is_inside = True
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - begin
                self.seconds += seconds
                self.calls.setdefault(name, []).append(seconds * 1e6)
                self._is_inside = False

        return call

    def take(self) -> float:
        """Microseconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds * 1e6


def measure(model: Path, root: Path, running: int, steps: int, *, storing: bool) -> dict[str, Any]:
    """One engine's steps, in this process."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    from vllm import EngineArgs, SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group
    from vllm.inputs import TokensPrompt
    from vllm.v1.engine.llm_engine import LLMEngine

    settings = {
        "path": str(root),
        "chunk_tokens": CHUNK_TOKENS,
        "host_memory": "256MiB",
        "store_generated": storing,
        "free_space_floor": 0,
    }
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float32",
            block_size=BLOCK_TOKENS,
            max_model_len=MODEL_LEN,
            max_num_seqs=running,
            max_num_batched_tokens=8192,
            enforce_eager=True,
            disable_log_stats=False,
            kv_transfer_config={
                "kv_connector": "LMKVConnector",
                "kv_connector_module_path": "lmkv.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": settings,
            },
        )
    )
    core = engine.engine_core.engine_core
    scheduler = core.scheduler
    dice = random.Random(running)
    longest = BLOCK_TOKENS + 1 + CHUNK_TOKENS
    sampling = SamplingParams(
        max_tokens=MODEL_LEN - longest, temperature=0.0, ignore_eos=True, detokenize=False
    )
    for i in range(running):
        # Their chunks are full in other steps than their neighbours'.
        length = BLOCK_TOKENS + 1 + i * CHUNK_TOKENS // running
        prompt = [dice.randrange(2, VOCABULARY) for _ in range(length)]
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=prompt), sampling)
    side = scheduler.connector.scheduler_side
    # Until every one decodes, and its prompt is stored.
    deadline = time.monotonic() + 120
    while not (
        len(scheduler.running) == running
        and all(request.num_output_tokens for request in scheduler.running)
        and (storing or not side.stores_under_way)
    ):
        engine.step()
        if time.monotonic() > deadline or not scheduler.has_unfinished_requests():
            raise RuntimeError("the engine does not decode all answers at once")
    clocks = {
        "scheduler": HookClock(scheduler.connector),
        "worker": HookClock(get_kv_transfer_group()),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*clocks, "step")}
    stored = chunks_stored(engine)
    while len(taken["step"]) < steps and len(scheduler.running) == running:
        begin = time.perf_counter()
        engine.step()
        taken["step"].append((time.perf_counter() - begin) * 1e6)
        for name, clock in clocks.items():
            taken[name].append(clock.take())
    stored = chunks_stored(engine) - stored
    calls = {
        name: {
            call: {"per_step": len(each) / len(taken["step"]), "p50_us": statistics.median(each)}
            for call, each in clock.calls.items()
        }
        for name, clock in clocks.items()
    }
    core.shutdown()
    return {
        "running": running,
        "kind": "storing" if storing else "idle",
        "steps": len(taken["step"]),
        "chunks_stored": stored,
        "calls": calls,
        **{
            f"{name}_us": {
                "p50": statistics.median(values),
                "p99": sorted(values)[int(0.99 * (len(values) - 1))],
            }
            for name, values in taken.items()
        },
    }


def chunks_stored(engine: Any) -> float:
    """Since the engine's start."""
    from engine_counters import counters_of

    return counters_of(engine).get("chunks_stored", 0)


def measure_apart(arguments: tuple[Path, Path, int, int, bool]) -> dict[str, Any]:
    """``measure``, with what vLLM prints on standard error."""
    os.dup2(2, 1)
    model, root, running, steps, storing = arguments
    return measure(model, root, running, steps, storing=storing)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="What lmkv takes of an engine's every step.")
    parser.add_argument("--path", type=Path, help="a folder is made in it, and removed")
    parser.add_argument("--running", default="1,64,512", help="requests, separated by commas")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", default="", metavar="FILE", help='"-": to standard output')
    arguments = parser.parse_args()
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory(prefix="lmkv-steps-", dir=arguments.path) as folder:
        model = save_tiny_llama(Path(folder) / "model")
        for running in map(int, arguments.running.split(",")):
            for storing in (False, True):
                root = Path(folder) / f"{running}-{storing}"
                with context.Pool(1) as pool:
                    task = (model, root, running, arguments.steps, storing)
                    rows.append(pool.apply(measure_apart, (task,)))
                print(in_words(rows[-1]), file=sys.stderr, flush=True)
    result: dict[str, Any] = {"rows": rows, "budgets_us": BUDGETS_US, "within": {}}
    for name, budget in BUDGETS_US.items():
        result[f"{name}_idle_us"] = {
            str(row["running"]): row[f"{name}_us"]["p50"] for row in rows if row["kind"] == "idle"
        }
        result["within"][name] = all(
            taken <= budget for taken in result[f"{name}_idle_us"].values()
        )
    text = json.dumps(result, indent=2) + "\n"
    if arguments.json == "-":
        print(text, end="")
    elif arguments.json:
        Path(arguments.json).write_text(text, encoding="utf-8")


def in_words(row: dict[str, Any]) -> str:
    """What was found, for whoever waits for it."""
    return f"{row['running']} running, {row['kind']}: " + ", ".join(
        f"{name} {row[name + '_us']['p50']:.1f} us (p99 {row[name + '_us']['p99']:.1f})"
        for name in ("scheduler", "worker", "step")
    )


if __name__ == "__main__":
    main()
