"""A real vLLM engine with lmkv that is stepped by hand, for measurements of its every token."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_engine import BLOCK_TOKENS, counters_of, make_engine

CHUNK_TOKENS = 256
CHUNK_BYTES = 30 * 48 * 1024 * (CHUNK_TOKENS // BLOCK_TOKENS) + 4096  # of SmolLM2-135M's KV
LEAD_TOKENS = 10  # of an answer, before the first window

Prompt = list[int]


@dataclass
class Window:
    """Milliseconds between the tokens from one arrival to the next."""

    kind: str
    turn: tuple[int, int] = (0, 0)
    steps: list[float] = field(default_factory=list)
    decode_steps: list[float] = field(default_factory=list)
    cpu_steps: list[float] = field(default_factory=list)


class DecodingEngine:
    """vLLM with lmkv over ``root``; its scheduler runs in this process, step by step."""

    def __init__(self, root: Path, model_threads: int, slabs: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(model_threads)
        from lmkv.demo.model import prepare_smollm2

        self._root = root
        self._number = 0
        settings = {
            "path": str(root),
            "chunk_tokens": CHUNK_TOKENS,
            "host_memory": slabs * CHUNK_BYTES,
            "load_policy": "always",
        }
        self._engine = make_engine(
            prepare_smollm2(), settings, max_model_len=4096, max_num_batched_tokens=CHUNK_TOKENS
        )
        self._core = self._engine.engine_core.engine_core
        self._scheduler = self._core.scheduler
        self._scheduled = 0
        schedule = self._scheduler.schedule

        def counting(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self._scheduled = output.total_num_scheduled_tokens
            return output

        self._scheduler.schedule = counting

    def decode(self, arrivals: list[tuple[Window, Prompt]], window_tokens: int) -> dict[str, float]:
        """One answer; the prompts arrive in its course and open their windows.

        Returns by how much lmkv's counters grew.
        """
        before = self.counters()
        answer = self._add(
            [7] * BLOCK_TOKENS, LEAD_TOKENS + window_tokens * len(arrivals) + 1, compute=True
        )
        window = Window("lead")
        done, last, last_cpu, opens_at = 0, 0.0, 0.0, LEAD_TOKENS
        left = list(reversed(arrivals))
        while left or done < opens_at:
            outputs = self._engine.step()
            now, cpu = time.perf_counter(), time.thread_time()
            new = sum(len(o.outputs[0].token_ids) for o in outputs if o.request_id == answer)
            if not new:
                continue
            done += new
            if last:
                window.steps.append((now - last) * 1e3)
                window.cpu_steps.append((cpu - last_cpu) * 1e3)
                if self._scheduled == 1:
                    window.decode_steps.append((now - last) * 1e3)
            last, last_cpu = now, cpu
            if done == opens_at and left:
                window, prompt = left.pop()
                self._add(prompt, 1, compute=window.kind in {"nothing", "storing"})
                opens_at += window_tokens
        self.finish()
        after = self.counters()
        return {name: after[name] - before.get(name, 0) for name in after}

    def compute(self, prompts: list[Prompt]) -> None:
        """Take the prompts in one by one, from any cache, and wait until all is stored."""
        for prompt in prompts:
            self._add(prompt, 1, compute=False)
            self.finish()

    def finish(self) -> None:
        """Step until no request and no store is left."""
        while self._scheduler.has_requests():
            self._engine.step()

    def forget(self) -> None:
        """Empty vLLM's own prefix cache."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM's prefix cache could not be emptied")

    def files(self) -> set[Path]:
        """Of all chunks."""
        return set(self._root.rglob("*.kv"))

    def close(self) -> None:
        """End the engine."""
        self._core.shutdown()

    def _add(self, prompt: Prompt, tokens: int, *, compute: bool) -> str:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        self._number += 1
        name = f"request-{self._number}"
        sampling = SamplingParams(
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
            skip_reading_prefix_cache=compute,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), sampling)
        return name

    def counters(self) -> dict[str, float]:
        """Of lmkv, since the start."""
        return counters_of(self._engine)
