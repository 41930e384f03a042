"""The commands of the GPU services, read by the programs that they start; none is started."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any, NoReturn

import compose
import pytest

from lmkv.cli import app
from lmkv.config import Config

pytest.importorskip("vllm", reason="vLLM is not installed")

MODULE = ["-m", "vllm.entrypoints.openai.api_server"]
SHELL = {"VLLM_ARGS": "--max-model-len 16384 -tp 1"}


class _BecameError(Exception):
    """Thrown where the process would become vLLM."""


def parsed(words: list[str]) -> Any:
    """Options of vLLM's server as its own parser reads them."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    except SystemExit:
        pytest.fail(said.getvalue()[-2000:])


def became(service: compose.Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that `lmkv serve` of this service becomes, in the service's own environment."""
    words = compose.command(service)
    assert words[:2] == ["lmkv", "serve"]
    for name in [name for name in os.environ if name.startswith("LMKV_")]:
        monkeypatch.delenv(name)
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    seen: list[str] = []

    def note(_: str, command: list[str]) -> NoReturn:
        seen.extend(command)
        raise _BecameError

    monkeypatch.setattr(os, "execvp", note)
    with contextlib.suppress(_BecameError):
        app(words[1:], standalone_mode=False)
    assert seen[1:3] == MODULE
    return seen[3:]


@pytest.mark.parametrize("name", ["vllm_0", "vllm_1"])
def test_vllm_reads_a_plain_engines_command(name: str) -> None:
    words = compose.command(compose.services("gpu", **SHELL)[name])
    assert words[:3] == ["python3", *MODULE]
    found = parsed(words[3:])
    assert found.model == "mistralai/Mistral-7B-Instruct-v0.2"
    assert (found.host, found.port, found.max_model_len) == ("0.0.0.0", 8000, 16384)
    assert found.kv_transfer_config is None


@pytest.mark.parametrize("name", ["lmkv_0", "lmkv_1"])
def test_vllm_and_lmkv_read_an_lmkv_engines_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose.services("gpu", HOST_MEMORY="3GiB", **SHELL)[name]
    found = parsed(became(service, monkeypatch))
    assert found.model == "mistralai/Mistral-7B-Instruct-v0.2"
    assert (found.host, found.port, found.max_model_len) == ("0.0.0.0", 8000, 16384)
    transfer = found.kv_transfer_config
    assert transfer.kv_load_failure_policy == "recompute"
    config = Config.from_sources(transfer.kv_connector_extra_config, service["environment"])
    assert config.path == ("/mnt/kv",)
    assert config.host_memory.bytes == 3 << 30


def test_plain_and_lmkv_engines_differ_by_the_connector_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for profile, plain, lmkv in (("gpu", "vllm_0", "lmkv_0"), ("cpu", "vllm_cpu_0", "lmkv_cpu_0")):
        found = compose.services(profile)
        with monkeypatch.context() as patched:
            words = became(found[lmkv], patched)
        without = vars(parsed(words)) | {"kv_transfer_config": None}
        assert vars(parsed(compose.command(found[plain])[3:])) == without
        assert found[plain]["environment"] == found[lmkv]["environment"]
