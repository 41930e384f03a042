"""A real vLLM engine in a process of its own, asked over pipes: see ``engine_driver.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmkv

HERE = Path(__file__).parent
PACKAGE = Path(lmkv.__file__).parents[1]  # also where lmkv is not installed
BLOCK = 32
ANSWER_TOKENS = 16


class Engine:
    """A vLLM engine in a process of its own, as a context manager."""

    def __init__(self, model, root, log, extra=None, **arguments):
        self._log = log
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
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "engine_driver.py"), json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={
                    **os.environ,
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "VLLM_LOGGING_LEVEL": "INFO",  # whatever lmkv explain has set it to
                    "HF_HUB_OFFLINE": "1",
                    "PYTHONPATH": str(PACKAGE),
                },
            )

    def __enter__(self):
        try:
            self._answer()
        except BaseException:  # the test's time is over, too
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def ask(self, what, **arguments):
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-40:])
            pytest.fail(f"the engine ended; its log says:\n{tail}")
        return json.loads(line)

    def generate(self, prompt):
        return self.ask("generate", prompt=prompt, max_tokens=ANSWER_TOKENS)
