"""A real vLLM engine in a process of its own that says how long a prompt's first token takes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vllm_engine import CONNECTOR, Connector, counters_of, engine_processes, make_engine

START_SECONDS = 300.0
ANSWER_SECONDS = 600.0
END_SECONDS = 30.0


class EngineError(RuntimeError):
    """The engine did not start or has ended; says which."""


@dataclass(frozen=True)
class Interpreter:
    """Another Python than this one, and what its environment has more."""

    python: Path
    environment: Mapping[str, str]


class TtftEngine:
    """vLLM on the CPU with SmolLM2-135M; plain, or with a connector set as ``settings`` says."""

    def __init__(
        self,
        max_model_len: int,
        settings: dict[str, Any] | None,
        *,
        kv_blocks: int | None = None,
        connector: Connector = CONNECTOR,
        interpreter: Interpreter | None = None,
        faults: str = "",
    ) -> None:
        """``kv_blocks``: how many its KV cache has; by default what fits in 1 GiB.
        ``interpreter``: what runs it, if not this one does; its children end with it.
        ``faults``: of lmkv's disk, as ``lmkv bench io --fault`` takes them.
        """
        from lmkv.demo.model import prepare_smollm2  # here: another interpreter may lack lmkv

        arguments = (prepare_smollm2(), max_model_len, settings, kv_blocks, connector, faults)
        start = _forked if interpreter is None else _run_by(interpreter)
        self._connection, self._end = start(arguments)

    def wait_until_ready(self) -> None:
        """Until it has started: several may start at once. Raises EngineError."""
        if not self._connection.poll(START_SECONDS):
            raise EngineError(f"it did not start in {START_SECONDS:.0f} s")
        if error := self._receive():
            raise EngineError(f"it did not start: {error}")

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

    def set_connector(self, *, is_in: bool) -> None:
        """Take the connector out of the idle engine, which goes on as vLLM without one, if in the
        layout of the KV cache that the connector has chosen; or put it back. Two engines of one
        kind differ by a tenth by how their memory happens to lie; so what a connector costs is
        measured within one.
        """
        self._ask("set_connector", is_in)

    def counters(self) -> dict[str, float]:
        """Of lmkv, since the start."""
        return dict(self._ask("counters"))

    def close(self) -> None:
        """End the engine."""
        self._connection.close()
        self._end()

    def _ask(self, *request: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # then there is nothing to receive, either
            self._connection.send(request)
        if not self._connection.poll(ANSWER_SECONDS):
            raise EngineError(f"it did not answer in {ANSWER_SECONDS:.0f} s")
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise EngineError("it ended; its lines above say why") from None


_Started = tuple[Connection, Callable[[], None]]  # what speaks to it, what ends it


def _forked(arguments: tuple[Any, ...]) -> _Started:
    context = engine_processes()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, *arguments))
    process.start()
    theirs.close()

    def end() -> None:
        process.join(END_SECONDS)
        process.kill()

    return ours, end


def _run_by(interpreter: Interpreter) -> Callable[[tuple[Any, ...]], _Started]:
    def start(arguments: tuple[Any, ...]) -> _Started:
        ours, theirs = multiprocessing.Pipe()
        process = subprocess.Popen(
            [interpreter.python, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1"} | dict(interpreter.environment),
            start_new_session=True,
        )
        theirs.close()
        ours.send(arguments)

        def end() -> None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and servers that it has started
            process.wait()

        return ours, end

    return start


def _serve(connection: Connection, *arguments: Any) -> None:
    try:
        engine = _Engine(*arguments)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        raise
    connection.send("")
    while True:
        try:
            what, *words = connection.recv()
        except (EOFError, ConnectionResetError):
            break
        connection.send(getattr(engine, what)(*words))
    engine.close()


def _set_lmkv(faults: str) -> None:
    from lmkv._C import Faults, fault_engine
    from lmkv.vllm import scheduler, worker

    # An idle engine goes on until all is stored, however slow the disk is.
    scheduler.STORE_LINGER_SECONDS = 60.0
    if faults:
        injected = Faults(faults, 0)
        worker.Engine = lambda options: fault_engine(options, injected)


class _Engine:
    def __init__(
        self,
        model: Path,
        max_model_len: int,
        settings: dict[str, Any] | None,
        kv_blocks: int | None,
        connector: Connector,
        faults: str,
    ) -> None:
        from vllm.distributed.kv_transfer import kv_transfer_state

        if connector == CONNECTOR:
            _set_lmkv(faults)
        self._number = 0
        self._engine = make_engine(
            model,
            settings,
            connector,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_model_len,
            num_gpu_blocks_override=kv_blocks,
        )
        self._core = self._engine.engine_core.engine_core
        agent = kv_transfer_state._KV_CONNECTOR_AGENT  # noqa: SLF001 - there is no other way in
        self._connectors = (self._core.scheduler.connector, agent)

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

    def set_connector(self, is_in: bool) -> None:
        from vllm.distributed.kv_transfer import kv_transfer_state

        sides = self._connectors if is_in else (None, None)
        self._core.scheduler.connector, kv_transfer_state._KV_CONNECTOR_AGENT = sides  # noqa: SLF001

    def counters(self) -> dict[str, float]:
        return counters_of(self._engine)

    def close(self) -> None:
        self._core.shutdown()


def bytes_of(root: Path) -> int:
    """Of all chunk files."""
    return sum(file.stat().st_size for file in root.rglob("*.kv"))


def _let_llvmlite_be() -> None:
    """Not show it to vLLM 0.32, which looks into all modules for kernels of Triton to replace, and
    ends over llvmlite's; LMCache imports it before that.
    """
    from vllm.triton_utils import dispatcher

    rebind = dispatcher._rebind_kernels  # noqa: SLF001

    def rebind_others(*arguments: Any) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]
        hidden = {name: sys.modules.pop(name) for name in names}
        try:
            rebind(*arguments)
        finally:
            sys.modules.update(hidden)

    dispatcher._rebind_kernels = rebind_others  # noqa: SLF001


if __name__ == "__main__":
    _let_llvmlite_be()
    _channel = Connection(int(sys.argv[1]))
    _serve(_channel, *_channel.recv())
