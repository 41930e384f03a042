"""The systems that ``peers.py`` compares: what each is, how it is set, and which Python runs it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttft_engine import Interpreter
from vllm_engine import CONNECTOR, Connector

ENVIRONMENTS = Path(__file__).resolve().parents[1] / "build" / "peers"
KV = "vllm.distributed.kv_transfer.kv_connector.v1"
GIB = 1 << 30


@dataclass(frozen=True)
class System:
    """Something that keeps vLLM's prefix cache in a directory."""

    title: str
    settings: Callable[[Path], dict[str, Any]]  # of an engine that keeps its files there
    connector: Connector
    packages: tuple[str, ...] = ()  # name==version, where they are not in this environment
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""  # to "it stores nothing"
    checks: str = ""  # what is found damaged when it is loaded
    way: str = ""  # how a hit goes there: why it is as quick as it is

    def interpreter(self) -> Interpreter | None:
        """What runs its engines; None is this process's own. It is installed if it is not yet.

        Raises subprocess.CalledProcessError where that fails.
        """
        if not self.packages:
            return None
        return Interpreter(python_with(self.packages), self.environment)


def python_with(packages: tuple[str, ...]) -> Path:
    """The Python of an environment that has ``packages``, and all of this one's where its own has
    nothing else: the same vLLM runs every system.
    """
    folder = ENVIRONMENTS / packages[0].replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join([sys.version, sysconfig.get_path("purelib"), *packages])
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        config = {"base": str(folder), "platbase": str(folder)}
        own = Path(sysconfig.get_path("purelib", vars=config))
        (own / "this_one.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        done.write_text(wanted, encoding="utf-8")
    return python


def _lmkv(folder: Path) -> dict[str, Any]:
    return {"path": str(folder), "host_memory": "1GiB", "free_space_floor": 0}


def _example(folder: Path) -> dict[str, Any]:
    return {"shared_storage_path": str(folder)}


def _offloading(folder: Path) -> dict[str, Any]:
    return {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": GIB,
        "secondary_tiers": [{"type": "fs", "root_dir": str(folder)}],
    }


def _lmcache_in_process(folder: Path) -> dict[str, Any]:
    # fs and not its local disk: that one's index is in memory, so another engine finds nothing.
    return {
        "lmcache.chunk_size": 256,
        "lmcache.local_cpu": True,
        "lmcache.max_local_cpu_size": 1,
        "lmcache.remote_url": f"fs://localhost:0{folder}",
        "lmcache.remote_serde": "naive",
    }


def _lmcache(chunk_tokens: int) -> Callable[[Path], dict[str, Any]]:
    """With a server of the engine's own, as on a node of its own."""

    def settings(folder: Path) -> dict[str, Any]:
        port, http_port, metrics_port = _free_ports(3)
        adapter = {
            "type": "fs_native", "base_path": str(folder), "use_odirect": True, "num_workers": 8,
        }  # fmt: skip
        return {
            "lmcache.mp.host": "tcp://localhost",
            "lmcache.mp.port": port,
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",  # shared memory; its default pickles
            "lmcache.mp.autostart": True,
            "lmcache.mp.autostart.server_args": (
                f"--chunk-size {chunk_tokens} --l1-size-gb 1 --l1-init-size-gb 1"
                f" --eviction-policy LRU --supported-transfer-mode lmcache_driven"
                f" --http-port {http_port} --prometheus-port {metrics_port}"
                f" --l2-adapter '{json.dumps(adapter)}'"
            ),
        }

    return settings


def _free_ports(count: int) -> list[int]:
    """On this host, all different. Somebody else may take one before it is used."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


_LMCACHE_PACKAGES = (
    "lmcache==0.5.6",
    # The only ones that fit together; pip tries others for minutes.
    "opentelemetry-exporter-otlp==1.40.0",
    "opentelemetry-exporter-prometheus==0.61b0",
)
_LMCACHE_ENVIRONMENT = {
    "LMCACHE_TRACK_USAGE": "false",
    "PYTHONHASHSEED": "0",  # its keys are the same in every process only with this
}
_LMCACHE_WAY = (
    "Its server reads with O_DIRECT, too, into memory that it shares with the engine, and verifies"
    " no byte."
)
_LMCACHE_MP = ("LMCacheMPConnector", "lmcache.integration.vllm.lmcache_mp_connector")

SYSTEMS = {
    "lmkv": System("lmkv", _lmkv, CONNECTOR, checks="checksums of all bytes"),
    "example": System(
        "vLLM's ExampleConnector",
        _example,
        ("ExampleConnector", f"{KV}.example_connector"),
        way="It reads a file for each layer in the engine's step, for which all other requests"
        " wait, and verifies nothing; it finds a whole prompt again, not its head, and removes"
        " nothing.",
    ),
    "lmcache": System(
        "LMCache 0.5.6, multiprocess, chunks of 256",
        _lmcache(256), _LMCACHE_MP, _LMCACHE_PACKAGES, _LMCACHE_ENVIRONMENT, way=_LMCACHE_WAY,
    ),
    "lmcache_32": System(
        "LMCache 0.5.6, multiprocess, chunks of 32",
        _lmcache(32), _LMCACHE_MP, _LMCACHE_PACKAGES, _LMCACHE_ENVIRONMENT, way=_LMCACHE_WAY,
    ),
    "lmcache_in_process": System(
        "LMCache 0.5.6, in process",
        _lmcache_in_process, ("LMCacheConnectorV1", f"{KV}.lmcache_connector"),
        _LMCACHE_PACKAGES, _LMCACHE_ENVIRONMENT,
        " (its gpu_connector has none for a CPU)",
    ),
    "offloading": System(
        "vLLM's OffloadingConnector with its fs tier (llm-d's, formerly)",
        _offloading,
        ("OffloadingConnector", f"{KV}.offloading_connector"),
    ),
}  # fmt: skip
