"""The command `lmkv demo` as people type it: usage, errors before an engine starts, exit status."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lmkv import __version__

COMMAND = [sys.executable, "-c", "from lmkv.cli import app; app()"]
NEEDS_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


def lmkv(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    if cache:
        environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_version() -> None:
    result = lmkv("--version")
    assert result.returncode == 0
    assert result.stdout.strip() == f"lmkv {__version__}"


def test_help_lists_the_commands() -> None:
    result = lmkv("--help")
    assert "demo" in result.stdout
    assert "doctor" in result.stdout


def test_the_command_line_loads_nothing_heavy() -> None:
    program = (
        "import sys, lmkv.cli; heavy = {'torch', 'vllm', 'openai', 'numpy', 'httpx', 'psutil'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    output = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
    assert output.strip() == "[]"


def test_an_unknown_engine_is_wrong_usage() -> None:
    result = lmkv("demo", "--headless", "--engines", "plain-a,plain-z")
    assert result.returncode == 2
    assert "'plain-z': choose from plain-a,plain-b,lmkv-a,lmkv-b" in result.stderr


def test_the_terminal_run_and_attached_engines_exclude_each_other() -> None:
    result = lmkv("demo", "--headless", "--attach", "http://127.0.0.1:1=plain")
    assert result.returncode == 2
    assert "--attach" in result.stderr


def test_options_for_engines_that_are_started_are_refused_with_attach() -> None:
    result = lmkv("demo", "--attach", "http://127.0.0.1:1=plain", "--model", "m")
    assert result.returncode == 2
    assert "--model" in result.stderr


@NEEDS_VLLM
def test_attach_says_what_it_takes() -> None:
    result = lmkv("demo", "--attach", "127.0.0.1:8000")
    assert result.returncode == 1
    assert "--attach http://host:8000=plain" in result.stderr


@NEEDS_VLLM
def test_a_taken_port_is_an_error_that_says_which(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = lmkv(
            "demo", "--headless", "--engines", "plain-a", "--model", str(model),
            "--port", str(port), cache=tmp_path,
        )  # fmt: skip
    assert result.returncode == 1
    assert f"error: port {port} is taken by process {os.getpid()}" in result.stderr


@NEEDS_VLLM
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere/model"], "there is no model folder /nowhere/model"),
        (["--document", "/nowhere/text"], "cannot read the document /nowhere/text"),
        (["--json", "/nowhere/out.json"], "cannot write /nowhere/out.json"),
    ],
)
def test_what_is_missing_is_named_before_an_engine_starts(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = lmkv("demo", "--headless", "--engines", "plain-a", *arguments, cache=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "lmkv" / "runs").exists()
