"""``lmkv serve`` as people type it: up to the exec, and once a real engine behind it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lmkv.cli.serve import FLAG
from lmkv.config import Config

LMKV = "from lmkv.cli import app; app()"
READY_WITHIN_S = 240
NEEDS_VLLM = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)

# Stands where vLLM would be started: says what would have been executed.
NOTE_EXEC = (
    "import json, os; os.execvp = lambda file, words: print(json.dumps([file, *words])); "
    "import importlib.util; importlib.util.find_spec = lambda name: name;"
)


def run(program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    values = {name: value for name, value in os.environ.items() if not name.startswith("LMKV_")}
    values |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    values |= {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", **environment}
    return subprocess.run(
        [sys.executable, "-c", program, "serve", *words],
        capture_output=True, text=True, env=values, check=False, timeout=60,
    )  # fmt: skip


def executed(*words: str, **environment: str) -> tuple[str, list[str]]:
    """The line that was printed, and the command that the process would have become."""
    done = run(NOTE_EXEC + LMKV, *words, **environment)
    assert done.returncode == 0, done.stderr
    said, command = done.stdout.splitlines()
    file, *command = json.loads(command)
    assert file == command[0]
    return said, command


def transfer(command: list[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(command[command.index(FLAG) + 1])
    return value


def refused(*words: str, **environment: str) -> str:
    done = run(NOTE_EXEC + LMKV, *words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    return " ".join(done.stderr.replace("│", " ").split())


def test_it_becomes_vllms_server_for_the_model_with_the_connector() -> None:
    _, command = executed("some/model", "--dir", "/mnt/kv")
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", "some/model"]
    assert command[:5] == [sys.executable, *module]
    assert command[5] == FLAG
    assert len(command) == 7
    assert transfer(command) == {
        "kv_connector": "LMKVConnector",
        "kv_connector_module_path": "lmkv.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"path": "/mnt/kv"},
    }


def test_the_printed_flag_is_the_one_it_used_and_can_be_pasted_into_a_shell() -> None:
    said, command = executed("m", "--dir", "/mnt/it's here", "--namespace", "a b")
    words = shlex.split(said)
    assert words[words.index(FLAG) :] == [FLAG, command[command.index(FLAG) + 1]]


def test_words_it_does_not_know_are_passed_on_unchanged_and_in_order() -> None:
    given = [
        "--port",
        "8001",
        "-tp",
        "2",
        "--max_model_len=4096",
        "--compilation-config.level",
        "0",
    ]
    _, command = executed("m", *given[:3], "--dir", "/mnt/kv", *given[3:])
    assert command[command.index(FLAG) + 2 :] == given


def test_what_follows_two_dashes_is_vllms_even_if_lmkv_has_that_option() -> None:
    _, command = executed("m", "--dir", "/mnt/kv", "--", "--io-threads", "4")
    assert command[-2:] == ["--io-threads", "4"]
    assert transfer(command)["kv_connector_extra_config"] == {"path": "/mnt/kv"}


def test_every_setting_is_an_option() -> None:
    """Those that the dataclass gains are options by themselves."""
    values = {
        "io_engine": "threads",
        "direct_io": "off",
        "namespace": "mine",
        "host_memory": "1GiB",
        "max_age": "7d",
    }
    words, expected = [], {"path": "/mnt/kv"}
    for spec in fields(Config):
        if spec.name == "path":
            continue
        option = spec.name.replace("_", "-")
        if isinstance(spec.default, bool):
            words += [f"--no-{option}" if spec.default else f"--{option}"]
            expected[spec.name] = not spec.default
        else:
            expected[spec.name] = values.get(spec.name, str(spec.default))
            words += [f"--{option}", expected[spec.name]]
    _, command = executed("m", "--dir", "/mnt/kv", *words)
    assert transfer(command)["kv_connector_extra_config"] == expected
    assert len(command) == 7
    Config.from_sources(expected, {})


def test_the_limits_of_the_directory_are_options_and_read_as_people_write_them() -> None:
    words = ["--capacity", "500GiB", "--free-space-floor", "2.5%"]
    _, command = executed("m", "--dir", "/mnt/kv", *words)
    extra = transfer(command)["kv_connector_extra_config"]
    assert extra == {"path": "/mnt/kv", "capacity": "500GiB", "free_space_floor": "2.5%"}
    config = Config.from_sources(extra, {})
    assert (config.capacity, config.free_space_floor) == (500 << 30, 2.5)


def test_settings_of_the_environment_are_in_the_printed_flag_and_options_win() -> None:
    _, command = executed(
        "m", "--chunk-tokens", "512",
        LMKV_PATH="/mnt/kv", LMKV_CHUNK_TOKENS="128", LMKV_STORE_TAIL="off",
    )  # fmt: skip
    assert transfer(command)["kv_connector_extra_config"] == {
        "path": "/mnt/kv",
        "chunk_tokens": "512",
        "store_tail": False,
    }


def test_a_relative_directory_is_meant_from_here() -> None:
    _, command = executed("m", "--dir", "kv")
    assert transfer(command)["kv_connector_extra_config"]["path"] == str(Path.cwd() / "kv")


def test_several_directories_are_separated_as_in_path() -> None:
    _, command = executed("m", "--dir", "/nvme0/kv:kv")
    paths = ["/nvme0/kv", str(Path.cwd() / "kv")]
    assert transfer(command)["kv_connector_extra_config"] == {"path": paths}
    _, command = executed("m", LMKV_PATH="/nvme0/kv:/nvme1/kv")
    assert transfer(command)["kv_connector_extra_config"] == {"path": ["/nvme0/kv", "/nvme1/kv"]}
    assert "error: path: /mnt/kv is named twice" in refused("m", "--dir", "/mnt/kv:/mnt/kv/")
    assert "a name is empty in" in refused("m", "--dir", "/mnt/kv:")


def test_the_directory_is_required() -> None:
    assert "Missing option '--dir'" in refused("m")
    assert "name a directory" in refused("m", "--dir", "")


@pytest.mark.parametrize(
    "word",
    [
        FLAG,
        f"{FLAG}={{}}",
        "--kv_transfer_config",
        "--kv-transfer",
        "--kv_t",
        f"{FLAG}.kv_role",
        f"{FLAG}.kv_connector_extra_config.path=/x",
    ],
)
def test_a_second_kv_transfer_config_is_refused(word: str) -> None:
    assert "lmkv serve writes --kv-transfer-config itself" in refused(
        "m", "--dir", "/kv", word, "x"
    )


def test_the_model_comes_first() -> None:
    assert "MODEL comes first, before --port" in refused("--port", "1", "m", "--dir", "/kv")


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (["--chunk-tokens", "3x"], {}, "error: chunk_tokens: expected a whole number, not '3x'"),
        (["--io-engine", "aio"], {}, "error: io_engine: expected one of auto, io_uring, threads"),
        (
            [],
            {"LMKV_HOST_MEMROY": "1GiB"},
            "LMKV_HOST_MEMROY: unknown setting; did you mean LMKV_H",
        ),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(
    words: list[str], environment: dict[str, str], sentence: str
) -> None:
    said = refused("m", "--dir", "/mnt/kv", *words, **environment)
    assert sentence in said
    assert "Traceback" not in said


def test_without_vllm_it_says_where_lmkv_belongs() -> None:
    program = "import importlib.util; importlib.util.find_spec = lambda name: None;" + LMKV
    done = run(program, "m", "--dir", "/mnt/kv")
    assert done.returncode == 1
    assert "has no vLLM: install lmkv into the environment that vLLM is in" in done.stderr


def test_help_names_every_setting_and_says_whose_the_other_words_are() -> None:
    said = run(LMKV, "--help").stdout
    for spec in fields(Config):
        assert ("--dir" if spec.name == "path" else f"--{spec.name.replace('_', '-')}") in said
    assert "are vLLM's and are passed on" in said


@NEEDS_VLLM
def test_no_option_of_lmkv_hides_one_of_vllm() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    theirs = {option for action in parser._actions for option in action.option_strings}
    assert FLAG in theirs
    ours = {f"--{spec.name.replace('_', '-')}" for spec in fields(Config)} | {"--dir"}
    assert not ours & theirs


# -- a real engine ----------------------------------------------------------------------------


def answer(port: int, prompt: str, rank: int) -> str:
    """What the engine of that data-parallel rank says."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-data-parallel-rank": str(rank)},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        text: str = json.load(reply)["choices"][0]["text"]
    return text


def tokens_loaded(port: int, rank: int) -> float:
    """As that rank counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith("vllm:lmkv_tokens_loaded_total") and f'engine="{rank}"' in line:
                return float(line.split()[-1])
    pytest.fail("there is no such metric")


def wait_for(what: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s; the log ends:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


@NEEDS_VLLM
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_one_engine_behind_it_stores_the_other_loads_and_it_ends_as_vllm_ends(
    tmp_path: Path,
) -> None:
    """Two data-parallel engines, each with a scheduler of its own."""
    from lmkv.demo.model import prepare_smollm2

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root, log = tmp_path / "kv", tmp_path / "log"
    words = ["--dir", str(root), "--host-memory", "256MiB", "--port", str(port)]
    words += ["--host", "127.0.0.1", "--served-model-name", "tiny", "--max-model-len", "1024"]
    words += ["--dtype", "float32", "--block-size", "32", "--enforce-eager"]
    words += ["--data-parallel-size", "2", "--load-policy", "always"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", LMKV, "serve", str(prepare_smollm2()), *words],
            stdout=output, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_for(ready, READY_WITHIN_S, log)
        assert f"lmkv: vLLM starts with {FLAG} " in log.read_text()
        prompt = "The lighthouse keeper wrote in the log. " * 60
        said = answer(port, prompt, 0)
        assert said
        wait_for(lambda: len(list(root.glob("v1/*/r0/*/*.kv"))) >= 2, 30, log)
        time.sleep(1)  # a tail may be there before the chunks that it stands behind
        assert answer(port, prompt, 1) == said
        wait_for(lambda: tokens_loaded(port, 1) >= 256, 30, log)
        assert tokens_loaded(port, 0) == 0
        # The process is vLLM's: its own name, and the signal is answered by vLLM.
        assert b"vllm.entrypoints" in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
