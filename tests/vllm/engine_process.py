"""A real vLLM engine in a process of its own, asked over a pipe: see ``engine_driver.py``.

It is forked from a process that has imported vLLM: that takes longer than the rest of a start.
"""

import functools
import multiprocessing
import multiprocessing.forkserver
from pathlib import Path

import engine_driver
import pytest

import lmkv

HERE = Path(__file__).parent
PACKAGE = Path(lmkv.__file__).parents[1]  # also where lmkv is not installed
BLOCK = 32
ANSWER_TOKENS = 16
ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",  # whatever lmkv explain has set it to
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
IMPORTED = [
    "lmkv.vllm",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
]


@functools.cache
def _forks():
    """Where engines are forked from; it has the environment that is read when vLLM is imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRON.items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context


class Engine:
    """A vLLM engine in a process of its own, as a context manager."""

    def __init__(self, model, root, log, extra=None, *, environ=None, start=None, **arguments):
        """``environ``: of the process, set before the engine is made. What is set in this process
        does not reach it. ``start="spawn"``: a process that shares nothing, not even the seed of
        ``hash``, with that of any other engine.
        """
        self._log = log
        log.touch()
        config = {"path": str(root), "host_memory": "1GiB", **(extra or {})}
        arguments = {
            "model": str(model),
            "dtype": "float32",
            "block_size": BLOCK,
            "max_model_len": 4096,
            "max_num_batched_tokens": 4096,
            "enforce_eager": True,
            "disable_log_stats": False,
            "kv_transfer_config": {
                "kv_connector": "LMKVConnector",
                "kv_connector_module_path": "lmkv.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": config,
            },
            **arguments,
        }
        processes = multiprocessing.get_context(start) if start else _forks()
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(
            target=engine_driver.serve,
            args=(theirs, str(log), {**ENVIRON, **(environ or {})}, arguments),
        )
        self._process.start()
        theirs.close()

    def __enter__(self):
        try:
            self._answer()
        except BaseException:  # the test's time is over, too
            self._end()
            raise
        return self

    def __exit__(self, error, *_):
        code = self._end()
        if error is None:
            assert code == 0, f"the engine did not end in order ({code}); see {self._log}"

    def _end(self):
        """Its exit status; None if it had to be killed."""
        self._connection.close()
        self._process.join(30)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        return code

    def ask(self, what, **arguments):
        self._connection.send((what, arguments))
        return self._answer()

    def _answer(self):
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            tail = "\n".join(self._log.read_text().splitlines()[-40:])
            pytest.fail(f"the engine ended; its log says:\n{tail}")

    def generate(self, prompt, control=None):
        return self.ask("generate", prompt=prompt, max_tokens=ANSWER_TOKENS, control=control)
