"""Executes the command lines of the documentation: see tests/test_doc_blocks.py.

Each is run as it stands, but for the directory, which is a temporary one, and for what would start
engines, install packages or need Docker: those are checked by what would do it.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from stored_chunk import OneStoredChunk
from typer.main import get_command

from lmkv.cli import app
from lmkv.config import Config
from lmkv.namespace import Namespace

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "deploy" / "docker-compose.yml"


class World:
    """What the documentation's commands find: /mnt/kv with a chunk and two namespaces in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kv = folder / "kv"
        self.stored = OneStoredChunk(self.kv)
        facts = {"dtype": "float32", "block_tokens": 32, "chunk_tokens": 256, "namespace": ""}
        for model in ("a", "b"):
            namespace = Namespace({**facts, "model": model})
            assert namespace.write_meta(str(self.kv), {"model": model}) is None
        (self.kv / "v1" / "0123456789abcdef").mkdir()
        meta = Namespace({**facts, "model": "a"}).directory(str(self.kv)) / "meta.json"
        own = self.kv / "v1" / self.stored.namespace.hex()[:16]
        (own / "meta.json").write_bytes(meta.read_bytes())

    def here(self, text: str) -> str:
        """``text`` with the documentation's directories replaced."""
        return text.replace("/mnt/kv", str(self.kv)).replace("/mnt/copy", str(self.folder / "copy"))


def lines_of(console: str) -> list[str]:
    """The command lines of a block; a backslash at the end of one goes on with the next."""
    joined = console.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def execute(line: str, world: World) -> None:
    """Execute one command line, or fail: there is nothing that is let pass."""
    words = shlex.split(line, comments=True)
    for beginning, executor in EXECUTORS.items():
        begin = beginning.split()
        if words[: len(begin)] == begin:
            executor(line, words[len(begin) :], world)
            return
    pytest.fail(f"no executor for the command {line!r}")


# -- what is run ---------------------------------------------------------------------------


def run(line: str, _: list[str], world: World, expected: tuple[int, ...] = (0,)) -> None:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["LMKV_ARENA_DIRECTORY"] = str(world.folder)  # and not what engines here may have
    command = world.here(line).replace(".venv/bin/python", shlex.quote(sys.executable))
    command = command.replace(" benchmarks/", f" {ROOT}/benchmarks/")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=world.folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode in expected, f"{command}\n{done.stdout}{done.stderr}"


def run_diff(line: str, words: list[str], world: World) -> None:
    run(line.replace("/*/", f"/{{{','.join(_two_namespaces(world))}}}/"), words, world, (0, 1))


def _two_namespaces(world: World) -> list[str]:
    return sorted(meta.parent.name for meta in world.kv.glob("v1/*/meta.json"))[:2]


def ask_metrics(line: str, words: list[str], world: World) -> None:
    """An engine's metrics, and what the rest of the line makes of them."""
    fetch, _, rest = line.partition("|")
    (url,) = [word for word in shlex.split(fetch) if word.startswith("http")]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url), url
    with metrics_server() as port:
        with urllib.request.urlopen(re.sub(r":\d+/", f":{port}/", url), timeout=10) as answer:
            text = answer.read()
        done = subprocess.run(
            ["bash", "-c", rest], input=text, capture_output=True, timeout=10, check=True
        )
    assert b"vllm:lmkv_tokens_loaded_total" in done.stdout


@contextlib.contextmanager
def metrics_server() -> Iterator[int]:
    """Serves the real counters of a connector that has done nothing yet."""
    text = metrics_text()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def metrics_text() -> bytes:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from prometheus_client import CollectorRegistry, Counter, generate_latest

    from lmkv.vllm.metrics import COUNTERS, prometheus_name

    registry = CollectorRegistry()
    for name, documentation in COUNTERS.items():
        counter = Counter(prometheus_name(name), documentation, ["engine"], registry=registry)
        counter.labels("0")
    return generate_latest(registry)


# -- what is read as the program would read it ------------------------------------------------


@functools.cache
def vllm_parser() -> Any:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def vllm_serve(_: str, words: list[str], world: World) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = vllm_parser().parse_args(words)
    except SystemExit:
        pytest.fail(said.getvalue()[-2000:])
    assert arguments.model_tag or arguments.model
    check_transfer(arguments.kv_transfer_config)


def check_transfer(transfer: Any) -> None:
    """``--kv-transfer-config`` as vLLM has read it."""
    assert transfer.kv_load_failure_policy == "recompute"
    extra = transfer.kv_connector_extra_config
    if transfer.kv_connector == "OffloadingConnector":
        (entry,) = extra["secondary_tiers"]
        assert (entry["type"], entry["module_path"]) == ("LMKVTier", "lmkv.vllm")
        extra = {name: entry[name] for name in entry.keys() - {"type", "module_path"}}
    else:
        assert transfer.kv_connector == "LMKVConnector"
    path = Config.from_sources(extra, {}).path
    assert path in {("/mnt/kv",), ("/nvme0/kv", "/nvme1/kv")}


class _ExecutedError(Exception):
    """Thrown in place of the program's end."""


def lmkv_serve(line: str, words: list[str], world: World) -> None:
    """Everything up to the exec, which would be vLLM; then what vLLM's parser says to it."""
    seen: list[list[str]] = []

    def note(_: str, command: list[str], *__: object) -> None:
        seen.append(list(command))
        raise _ExecutedError

    names = ("execv", "execve", "execvp", "execvpe")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(os, name, note))
        stack.enter_context(contextlib.suppress(_ExecutedError))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        app(["serve", *(world.here(word) for word in words)], standalone_mode=False)
    assert seen, f"{line}: no engine would have been started"
    flag = next(i for i, word in enumerate(seen[0]) if word.startswith("-") and word != "-m")
    command = [word.replace(str(world.kv), "/mnt/kv") for word in seen[0]]
    vllm_serve(line, command[flag:], world)


def lmkv_demo(_: str, words: list[str], world: World) -> None:
    """Read, not run: what the demo does is tested in tests/demo, with real engines."""
    get_command(app).commands["demo"].make_context("demo", [world.here(word) for word in words])


def lmkv_explain(_: str, words: list[str], world: World) -> None:
    """Read, not run: tests/vllm/test_explain.py runs it, beside real engines."""
    get_command(app).commands["explain"].make_context("explain", [world.here(w) for w in words])


def lmkv_bench_remote(_: str, words: list[str], world: World) -> None:
    """Read, not run: tests/bench/test_remote.py runs it, with real servers."""
    bench = get_command(app).commands["bench"]
    bench.commands["remote"].make_context("remote", [world.here(word) for word in words])


def lmkv_doctor(line: str, words: list[str], world: World) -> None:
    """As it stands, with two namespaces that are there in place of those of ``--compare``."""
    if "--compare" in words:
        named = words[words.index("--compare") + 1 :][:2]
        for name, other in zip(named, _two_namespaces(world), strict=True):
            line = line.replace(name, other)
    run(line, words, world)


def make(line: str, words: list[str], world: World) -> None:
    """The target is there; what it does is what runs this test, or tests/demo."""
    subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, check=True)
    for word in words:
        if word.startswith("ARGS=") and words[0] == "demo":
            lmkv_demo(line, shlex.split(word.removeprefix("ARGS=")), world)


def pip_install(_: str, words: list[str], world: World) -> None:
    """From this clone, with extras that pyproject.toml has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if not word.startswith("-"):
            wanted = Requirement("lmkv" + word.removeprefix(".")) if word[0] == "." else None
            assert wanted is not None, f"{word} is installed by nothing here"
            assert wanted.extras <= set(project["optional-dependencies"])


def apt_install(_: str, words: list[str], world: World) -> None:
    """What scripts/setup.sh installs, but for the browser, which only Debian has as a package."""
    setup = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    functions = re.findall(r"^missing_for_\w+\(\) \{$(.*?)^\}$", setup, re.MULTILINE | re.DOTALL)
    echoed = re.findall(r"\becho ('.*'|\".*\"|\S+)$", "".join(functions), re.MULTILINE)
    named = {re.sub(r"\$\(version_of [^)]*\)", "3", name.strip("\"'")) for name in echoed}
    assert {word for word in words if not word.startswith("-")} == named - {"chromium"}


def docker_compose(line: str, words: list[str], world: World) -> None:
    """Files, profiles and services are there. (There is no Docker here to ask.)"""
    files = [ROOT / words[i + 1] for i, word in enumerate(words) if word == "-f"] or [COMPOSE]
    services: dict[str, Any] = {}
    for file in files:
        path = file if file.exists() else COMPOSE.parent / file.name
        assert path.exists(), f"{line}: there is no {file}"
        services |= yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    profiles = {name for service in services.values() for name in service.get("profiles", ())}
    verbs = {"up", "down", "build", "ps", "logs", "pull", "config", "restart", "stop", "exec"}
    rest = iter(words)
    for word in rest:
        if word == "--profile":
            assert next(rest) in profiles, line
        elif word in {"-f", "--env-file", "--timeout"}:
            next(rest)
        elif word.startswith("-"):
            assert word in {"-d", "--build", "--wait", "--volumes"}, f"{line}: {word}?"
        else:
            assert word in verbs | set(services), f"{line}: {word} is no service"


def change_folder(line: str, words: list[str], world: World) -> None:
    assert (ROOT / words[0]).is_dir(), line


def copy_example(line: str, words: list[str], world: World) -> None:
    if words[0].startswith("-"):
        return run(line, words, world)
    assert any((folder / words[0]).exists() for folder in (ROOT, COMPOSE.parent)), line
    return None


EXECUTORS: dict[str, Callable[[str, list[str], World], None]] = {
    "lmkv doctor": lmkv_doctor,
    "lmkv explain": lmkv_explain,
    "lmkv stats": run,
    "lmkv ls": run,
    "lmkv verify": run,
    "lmkv gc": run,
    "lmkv bench remote": lmkv_bench_remote,
    "lmkv bench": run,
    "lmkv --help": run,
    "lmkv --version": run,
    "lmkv serve": lmkv_serve,
    "lmkv demo": lmkv_demo,
    ".venv/bin/lmkv demo": lmkv_demo,
    ".venv/bin/python benchmarks/core_throughput.py": run,
    "ls": run,
    "du": run,
    "find": run,
    "rm -r": run,
    "cp": copy_example,
    "cd": change_folder,
    "diff": run_diff,
    "curl": ask_metrics,
    "vllm serve": vllm_serve,
    "make": make,
    "pip install": pip_install,
    "apt-get install": apt_install,
    "docker compose": docker_compose,
}
