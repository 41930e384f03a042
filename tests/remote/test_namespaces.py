"""Two hosts and a remote engine in networks of their own (namespaces, a bridge between them), with
no directory in common: they share through it, and a cable that is pulled costs what it has to.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from remote_servers import ACCESS_KEY, SECRET_KEY, Where, mooncake, s3_options, seaweedfs

HERE = Path(__file__).parent


@pytest.fixture(params=["s3", "mooncake"])
def remote(
    request: pytest.FixtureRequest, networks: dict[str, Where], tmp_path: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    server = networks["server"]
    if request.param == "s3":
        with seaweedfs(tmp_path / "s3", server) as port:
            yield "s3://bucket/namespaces", s3_options(port, server.address)
    else:
        with mooncake(tmp_path / "mooncake", where=server) as options:
            yield "mooncake:///namespaces", options


@contextmanager
def host(
    where: Where, remote: tuple[str, dict[str, str]], root: Path, what: str
) -> Iterator[subprocess.Popen[str]]:
    url, options = remote
    command = [
        *where.wrapper, sys.executable, HERE / "host_process.py", url, json.dumps(options), root,
        what,
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the host died; its lines above say why"
    return json.loads(line)


def load(process: subprocess.Popen[str]) -> Any:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def test_hosts_share_through_it_and_survive_a_pulled_cable(
    networks: dict[str, Where], remote: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    with host(networks["a"], remote, tmp_path / "a", "store") as first:
        assert answer(first) == [""] * 6
    with host(networks["b"], remote, tmp_path / "b", "load") as second:
        loaded = load(second)
        assert loaded["failed"] == []
        assert loaded["remote"] == list(range(6))
        assert loaded["right"]
    cable = ["ip", "-n", networks["server"].wrapper[-1], "link", "set", "to-b"]
    with host(networks["b"], remote, tmp_path / "c", "load") as third:
        # Connected before the cable is pulled: that is what its first answer says.
        time.sleep(2)
        subprocess.run([*cable, "down"], check=True)
        pulled = load(third)
        assert pulled["failed"] == list(range(6))
        assert pulled["seconds"] < 10
        again = load(third)
        assert again["failed"] == list(range(6))
        assert again["seconds"] < 1, "it is asked though it is out of service"
        subprocess.run([*cable, "up"], check=True)
        deadline = time.monotonic() + 120
        while (found := load(third))["failed"]:
            assert time.monotonic() < deadline, found
            time.sleep(1)
        assert found["right"]
        assert found["slabs_in_use"] == 0
