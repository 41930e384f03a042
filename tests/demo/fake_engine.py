"""Stands in for vLLM where a test is about processes or about the HTTP exchange.

`python fake_engine.py --port N [--family FILE] [--die SECONDS] [--limit WORDS] [--silent FILE]`

Answers /health, /v1/models, /metrics, /tokenize and streamed chat completions. `--family`: starts
processes that ignore SIGTERM and leave the session and the process group, as hard to end as can
be, and writes their ids to the file. `--die`: prints a line and exits with status 7. `--limit`: the
longest prompt. `--silent`: unless the file is there, makes it, and takes connections without ever
answering.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

FIRST_TOKEN_S = 0.4
TOKEN_S = 0.05
WORDS = ["lmkv ", "keeps ", "KV."]

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
time.sleep(600)
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    limit = 1000
    asked = 0
    requests: ClassVar[list[dict[str, Any]]] = []
    lmkv: ClassVar[dict[str, float]] = {}
    # (port, first moment, last moment) of every answer.
    spans: ClassVar[list[tuple[int, float, float]]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        by_source = "vllm:prompt_tokens_by_source_total"
        metrics = [f"# TYPE {by_source.removesuffix('_total')} counter"]
        for source, first, repeat in (("external_kv_transfer", 96, 0), ("local_cache_hit", 0, 64)):
            value = first * min(Handler.asked, 1) + repeat * max(Handler.asked - 1, 0)
            metrics.append(f'{by_source}{{engine="0",source="{source}"}} {value}.0')
        metrics += [f"vllm:lmkv_{name}_total {value}" for name, value in Handler.lmkv.items()]
        if self.path == "/metrics":
            self.reply(200, "\n".join(metrics) + "\n")
        else:
            models = {"data": [{"id": "fake-model"}]}
            self.reply(200, json.dumps(models) if self.path == "/v1/models" else "")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.requests.append(request)
        if self.path == "/tokenize":
            self.reply(200, json.dumps({"count": len(request["prompt"].split())}))
            return
        words = sum(len(message["content"].split()) for message in request["messages"])
        if words > Handler.limit:
            message = f"This model's maximum context length is {Handler.limit} tokens."
            self.reply(400, json.dumps({"error": {"message": message, "type": "BadRequestError"}}))
            return
        Handler.asked += 1
        began = time.monotonic()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        time.sleep(FIRST_TOKEN_S)
        for word in WORDS:
            self.event({"choices": [{"index": 0, "delta": {"content": word}}]})
            time.sleep(TOKEN_S)
        usage = {"prompt_tokens": words, "completion_tokens": len(WORDS), "total_tokens": 0}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        Handler.spans.append((self.server.server_address[1], began, time.monotonic()))
        self.close_connection = True

    def event(self, fields: dict[str, object]) -> None:
        event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"} | fields
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A handler that a test made fail is no news."""


@contextlib.contextmanager
def served(port: int = 0) -> Iterator[str]:
    """An engine in this process, while the `with` block runs; its address."""
    server = QuietServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def start_family(file: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    orphan = child.stdout.readline().strip()
    stubborn = subprocess.Popen(
        [sys.executable, "-c", STUBBORN.replace("if os.fork()", "if False")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stubborn.stdout is not None
    file.write_text(f"{os.getpid()} {orphan} {stubborn.stdout.readline().strip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--family", type=Path)
    parser.add_argument("--die", type=float)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--silent", type=Path)
    arguments, _ = parser.parse_known_args()
    Handler.limit = arguments.limit
    if arguments.family:
        start_family(arguments.family)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    if arguments.silent and not arguments.silent.exists():
        arguments.silent.touch()
        print("still loading", flush=True)
        time.sleep(600)
    if arguments.die is not None:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        time.sleep(arguments.die)
        print("RuntimeError: the fake engine had enough", flush=True)
        os._exit(7)
    server.serve_forever()


if __name__ == "__main__":
    main()
