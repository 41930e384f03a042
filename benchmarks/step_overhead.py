"""Microseconds that lmkv takes of an engine's every step, with many requests running.

    python benchmarks/step_overhead.py --path DIR [--running 1,64,512] [--steps 400] [--json -]

Real engines (vLLM on the CPU, a tiny model) decode as many answers at once as ``--running`` says.
Every call that vLLM makes of the connector is timed, and those of a step are added up: the
scheduler's, which runs on the engine core's thread, and the worker's. Three kinds of steps:

* ``empty``: not lmkv's, but those of a connector that does nothing. What the calls cost, and taking
  the time of them; with many requests running, no call finds anything of it in the processor's
  caches any more.
* ``idle``: lmkv's, when nothing is to be stored or loaded, as in most steps of a decode.
* ``storing``: of another engine, which stores what it generates (``store_generated``). Answers are
  staggered, so that in every step as many chunks are full as are over a long time; with one
  running request few steps store.

Times are by the clock, so a busy machine shows in the 99th percentile; medians are what is held
against the budgets.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import folder_in, keep_standard_output, parser_of, write_result
from tiny_llama import VOCABULARY, save_tiny_llama
from vllm_engine import BLOCK_TOKENS, CONNECTOR, counters_of, engine_processes, make_engine

CHUNK_TOKENS = 128
KINDS = ("empty", "idle", "storing")
EMPTY = ("EmptyConnector", "empty_connector")
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


def measure(model: Path, root: Path, running: int, steps: int, kind: str) -> dict[str, Any]:
    """One engine's steps, in this process."""
    from vllm import SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group
    from vllm.inputs import TokensPrompt

    settings = {
        "path": str(root),
        "chunk_tokens": CHUNK_TOKENS,
        "host_memory": "256MiB",
        "store_generated": kind == "storing",
        "free_space_floor": 0,
    }
    engine = make_engine(
        model,
        settings,
        EMPTY if kind == "empty" else CONNECTOR,
        skip_tokenizer_init=True,
        max_model_len=MODEL_LEN,
        max_num_seqs=running,
        max_num_batched_tokens=8192,
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
    # Until every one decodes, and its prompt is stored.
    deadline = time.monotonic() + 120
    while not (
        len(scheduler.running) == running
        and all(request.num_output_tokens for request in scheduler.running)
        and (kind != "idle" or not scheduler.connector.scheduler_side.stores_under_way)
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
        "kind": kind,
        "connector": type(scheduler.connector).__name__,
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
    return counters_of(engine).get("chunks_stored", 0)


def measure_apart(arguments: tuple[Path, Path, int, int, str]) -> dict[str, Any]:
    """``measure``, in a process of its own."""
    return measure(*arguments)


def main() -> None:
    """See the module."""
    parser = parser_of("What lmkv takes of an engine's every step.")
    parser.add_argument("--running", default="1,64,512", help="requests, separated by commas")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()

    context = engine_processes()
    rows = []
    keep_standard_output()
    with folder_in(arguments.path, "steps") as folder:
        model = save_tiny_llama(folder / "model")
        for running in map(int, arguments.running.split(",")):
            for kind in KINDS:
                root = folder / f"{running}-{kind}"
                with context.Pool(1) as pool:
                    task = (model, root, running, arguments.steps, kind)
                    rows.append(pool.apply(measure_apart, (task,)))
                print(in_words(rows[-1]), file=sys.stderr, flush=True)
    result: dict[str, Any] = {"rows": rows, "budgets_us": BUDGETS_US, "within": {}}
    result["repetitions"] = min(row["steps"] for row in rows)
    for name, budget in BUDGETS_US.items():
        for kind in ("empty", "idle"):
            result[f"{name}_{kind}_us"] = {
                str(row["running"]): row[f"{name}_us"]["p50"] for row in rows if row["kind"] == kind
            }
        result["within"][name] = all(
            taken <= budget for taken in result[f"{name}_idle_us"].values()
        )
    write_result(result, arguments.json)


def in_words(row: dict[str, Any]) -> str:
    """What was found, for whoever waits for it."""
    return f"{row['running']} running, {row['kind']}: " + ", ".join(
        f"{name} {row[name + '_us']['p50']:.1f} us (p99 {row[name + '_us']['p99']:.1f})"
        for name in ("scheduler", "worker", "step")
    )


if __name__ == "__main__":
    main()
