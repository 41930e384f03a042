"""A real vLLM engine in a process of its own that says how long a prompt's first token takes."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vllm_engine import CONNECTOR, Connector, counters_of, engine_processes, make_engine

START_SECONDS = 300.0


class TtftEngine:
    """vLLM on the CPU with SmolLM2-135M; plain, or with a connector set as ``settings`` says."""

    def __init__(
        self,
        max_model_len: int,
        settings: dict[str, Any] | None,
        *,
        kv_blocks: int | None = None,
        connector: Connector = CONNECTOR,
    ) -> None:
        """``kv_blocks``: how many its KV cache has; by default what fits in 1 GiB."""
        context = engine_processes()
        self._connection, theirs = context.Pipe()
        arguments = (theirs, max_model_len, settings, kv_blocks, connector)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Until it has started: several may start at once."""
        if not self._connection.poll(START_SECONDS):
            raise RuntimeError("the engine did not start")
        self._receive()

    def ttft(self, prompt: list[int]) -> float:
        """Seconds from the request to its first token; the stores it led to are done on return."""
        return float(self._ask("ttft", prompt))

    def batch(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Answer them all at once, greedily: ``seconds`` until the last answer is done, ``ttft`` of
        each, the ``answers``, and how many tokens of each prompt were ``cached``, wherever. The
        stores they led to are done on return.
        """
        return dict(self._ask("batch", prompts, tokens))

    def forget(self) -> None:
        """Empty vLLM's own prefix cache."""
        self._ask("forget")

    def counters(self) -> dict[str, float]:
        """Of lmkv, since the start."""
        return dict(self._ask("counters"))

    def close(self) -> None:
        """End the engine."""
        self._connection.close()
        self._process.join(30)
        self._process.kill()

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("the engine ended; its lines above say why") from None


def _serve(
    connection: Connection,
    max_model_len: int,
    settings: dict[str, Any] | None,
    kv_blocks: int | None,
    connector: Connector,
) -> None:
    engine = _Engine(max_model_len, settings, kv_blocks, connector)
    connection.send("ready")
    while True:
        try:
            what, *arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            break
        connection.send(getattr(engine, what)(*arguments))
    engine.close()


class _Engine:
    def __init__(
        self,
        max_model_len: int,
        settings: dict[str, Any] | None,
        kv_blocks: int | None,
        connector: Connector,
    ) -> None:
        from lmkv.demo.model import prepare_smollm2
        from lmkv.vllm import scheduler

        # An idle engine goes on until all is stored, however slow the disk is.
        scheduler.STORE_LINGER_SECONDS = 60.0
        self._number = 0
        self._engine = make_engine(
            prepare_smollm2(),
            settings,
            connector,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_model_len,
            num_gpu_blocks_override=kv_blocks,
        )
        self._core = self._engine.engine_core.engine_core

    def ttft(self, prompt: list[int]) -> float:
        return float(self.batch([prompt], 1)["ttft"][0])

    def batch(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        ttft: dict[str, float] = {}
        answers: dict[str, list[int]] = {}
        cached: dict[str, int] = {}
        names = []
        begin = time.perf_counter()
        for prompt in prompts:
            self._number += 1
            names.append(f"request-{self._number}")
            self._engine.add_request(names[-1], TokensPrompt(prompt_token_ids=prompt), sampling)
        while len(answers) < len(prompts):
            for output in self._engine.step():
                if output.outputs[0].token_ids:
                    ttft.setdefault(output.request_id, time.perf_counter() - begin)
                if output.finished:
                    answers[output.request_id] = list(output.outputs[0].token_ids)
                    cached[output.request_id] = output.num_cached_tokens or 0
        seconds = time.perf_counter() - begin
        while self._core.scheduler.has_requests():
            self._engine.step()
        return {
            "seconds": seconds,
            "ttft": [ttft[name] for name in names],
            "answers": [answers[name] for name in names],
            "cached": [cached[name] for name in names],
        }

    def forget(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM's prefix cache could not be emptied")

    def counters(self) -> dict[str, float]:
        return counters_of(self._engine)

    def close(self) -> None:
        self._core.shutdown()


def bytes_of(root: Path) -> int:
    """Of all chunk files."""
    return sum(file.stat().st_size for file in root.rglob("*.kv"))
