"""Remote engines, of which one of each kind serves all tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from remote_servers import ACCESS_KEY, SECRET_KEY, Where, mooncake, s3_options, seaweedfs

from lmkv.remote.store import Place

NAMES = ("server", "a", "b")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"may not make networks: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def networks() -> Iterator[dict[str, Where]]:
    """By name."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make networks")
    made: dict[str, Where] = {}
    number = os.getpid() % 200 + 20
    try:
        for place, name in enumerate(NAMES, 1):
            space = f"lmkv-{os.getpid()}-{name}"
            ip("netns", "add", space)
            made[name] = Where(("ip", "netns", "exec", space), f"10.{number}.0.{place}")
            ip("-n", space, "link", "set", "lo", "up")
        server = made["server"].wrapper[-1]
        ip("-n", server, "link", "add", "bridge", "type", "bridge")
        ip("-n", server, "addr", "add", f"{made['server'].address}/24", "dev", "bridge")
        ip("-n", server, "link", "set", "bridge", "up")
        for name in NAMES[1:]:
            space = made[name].wrapper[-1]
            pair = ("type", "veth", "peer", "eth0", "netns", space)
            ip("-n", server, "link", "add", f"to-{name}", *pair)
            ip("-n", server, "link", "set", f"to-{name}", "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{made[name].address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
        yield made
    finally:
        for where in made.values():
            subprocess.run(["ip", "netns", "del", where.wrapper[-1]], check=False)


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as port:
        yield port


@pytest.fixture(scope="session")
def mooncake_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with mooncake(tmp_path_factory.mktemp("mooncake")) as options:
        yield options


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(params=["s3", "mooncake"])
def place(request: pytest.FixtureRequest, credentials: None) -> Place:
    """A remote tier with nothing of this test in it."""
    prefix = request.node.name.replace("[", "-").rstrip("]")
    if request.param == "s3":
        options = s3_options(request.getfixturevalue("s3_port"))
        return Place.parse(f"s3://bucket/{prefix}", options)
    options = request.getfixturevalue("mooncake_options")
    master = options["master_server_address"]
    return Place.parse(
        f"mooncake://{master}/{prefix}", {"metadata_server": options["metadata_server"]}
    )
