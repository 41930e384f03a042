"""Chunks in a Mooncake Store: memory (and disks) of many hosts, over RDMA or TCP.

Chunks are put from the slabs and got into them, which are registered with the client once. A
transfer that Mooncake has given up as failed may still write to its buffer later: such a slab is
never used again. (A put that is late sends what is another chunk's by then, which its readers'
checksums find.)
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lmkv._C import RemoteResult
from lmkv.errors import ConfigError
from lmkv.remote.store import Done, Item, Place, RemoteError
from lmkv.values import parse_size

try:
    from mooncake.store import MooncakeDistributedStore, ReplicateConfig
except ImportError as error:
    raise ConfigError(
        f"remote mooncake:// needs Mooncake ({error}): pip install mooncake-transfer-engine "
        "(with CUDA), or mooncake-transfer-engine-non-cuda"
    ) from None

# Where Mooncake's own users have their settings.
CONFIG_VARIABLE = "MOONCAKE_CONFIG_PATH"

REACH_SECONDS = 2.0
TRY_SECONDS = 15.0
_TRY = """
import json, os, sys
from mooncake.store import MooncakeDistributedStore
os._exit(1 if MooncakeDistributedStore().setup(*json.loads(sys.argv[1])) else 0)
"""

# Of mooncake-store's error codes (include/types.h).
OBJECT_NOT_FOUND = -704
OBJECT_ALREADY_EXISTS = -705
# Those of a get that say that nothing is, or has been, transferred: of the question where an object
# is, and of what is looked at when all of it has come.
_SETTLED = frozenset(
    {
        -600,  # INVALID_PARAMS: a buffer that is too small, say
        -703,  # REPLICA_IS_NOT_READY
        OBJECT_NOT_FOUND,
        -707,  # LEASE_EXPIRED
        -710,  # REPLICA_NOT_FOUND
        -712,  # REPLICA_IS_GONE
        -900,  # RPC_FAIL
    }
)

# Names in that file, and its defaults. A client of ours holds no chunks of others unless it is told
# to: hosts that do are Mooncake's own clients.
_DEFAULTS: Mapping[str, Any] = {
    "local_hostname": "",
    "metadata_server": "P2PHANDSHAKE",
    "global_segment_size": 0,
    "local_buffer_size": 16 << 20,
    "protocol": "tcp",
    "device_name": "",
    "master_server_address": "",
    "replica_num": 1,
    "with_soft_pin": False,
}


def connect(place: Place) -> tuple[MooncakeDistributedStore, ReplicateConfig]:
    """Mooncake's client, set up, and how it is to put. ``place.options`` are named as in Mooncake's
    configuration file, which is read if ``MOONCAKE_CONFIG_PATH`` names one; the former win, and
    ``mooncake://host:port`` names the master. Blocks for some seconds: another process sets a
    client up first. Raises RemoteError, ConfigError.
    """
    settings = _settings(place)
    master = settings["master_server_address"]
    local = settings["local_hostname"] or _own_address(master)
    arguments = (
        local,
        settings["metadata_server"],
        parse_size(settings["global_segment_size"]),
        parse_size(settings["local_buffer_size"]),
        settings["protocol"],
        settings["device_name"],
        master,
    )
    _try_elsewhere(settings, (local, arguments[1], 0, *arguments[3:]))
    replicas = ReplicateConfig()
    replicas.replica_num = int(settings["replica_num"])
    client = MooncakeDistributedStore()
    if failed := client.setup(*arguments):
        raise RemoteError(f"{place}: the client was not set up ({failed})")
    return client, replicas


class MooncakeStore:
    """See ``RemoteStore``."""

    def __init__(self, place: Place) -> None:
        """As ``connect``."""
        self._store, self._replicas = connect(place)
        self._master = _settings(place)["master_server_address"]
        self._registered = 0

    def register(self, address: int, size: int) -> None:
        if failed := self._store.register_buffer(address, size):
            raise RemoteError(f"host memory was not registered ({failed})")
        self._registered = address

    def exists(self, names: Sequence[str]) -> list[bool]:
        answers = self._store.batch_is_exist(list(names))
        if any(answer < 0 for answer in answers):
            raise RemoteError(f"the master did not say what is there ({min(answers)})")
        return [answer == 1 for answer in answers]

    def get(self, items: Sequence[Item], done: Done) -> None:
        try:
            self._carry(items, self._store.batch_get_into, done, _got)
        except Exception as error:  # noqa: BLE001 - it may have begun
            for item in items:
                done(item, RemoteResult.UNSETTLED, f"it was not got: {error}")

    def put(self, items: Sequence[Item], done: Done) -> None:
        there = self.exists([item.name for item in items])
        new = []
        for item, is_there in zip(items, there, strict=True):
            if is_there:
                done(item, RemoteResult.THERE, "")
            else:
                new.append(item)
        if new:
            self._carry(
                new,
                lambda *arguments: self._store.batch_put_from(*arguments, self._replicas),
                done,
                _put,
            )

    def _carry(
        self,
        items: Sequence[Item],
        call: Callable[[list[str], list[int], list[int]], list[int]],
        done: Done,
        outcome: Callable[[Item, int], tuple[RemoteResult, str]],
    ) -> None:
        names, addresses, sizes = (list(part) for part in zip(*items, strict=True))
        for item, answer in zip(items, call(names, addresses, sizes), strict=True):
            done(item, *outcome(item, answer))

    def remove(self, name: str) -> RemoteResult:
        # Whoever reads it just now reads what is damaged.
        answer = self._store.remove(name, True)
        if answer == OBJECT_NOT_FOUND:
            return RemoteResult.MISSING
        if answer:
            raise RemoteError(f"it was not removed ({answer})")
        return RemoteResult.DONE

    def close(self) -> None:
        try:  # as for the set-up: not without an answer
            _reach(self._master)
        except RemoteError:
            return
        if self._registered:
            self._store.unregister_buffer(self._registered)
        self._store.close()


def _got(item: Item, answer: int) -> tuple[RemoteResult, str]:
    if answer == item.bytes:
        return RemoteResult.DONE, ""
    if answer == OBJECT_NOT_FOUND:
        return RemoteResult.MISSING, ""
    if answer >= 0:
        return RemoteResult.BAD, f"it has another size than {item.bytes} bytes"
    result = RemoteResult.FAILED if answer in _SETTLED else RemoteResult.UNSETTLED
    return result, f"it was not got ({answer})"


def _put(item: Item, answer: int) -> tuple[RemoteResult, str]:
    del item
    if answer == OBJECT_ALREADY_EXISTS:
        return RemoteResult.THERE, ""
    if answer:
        return RemoteResult.FAILED, f"it was not put ({answer})"
    return RemoteResult.DONE, ""


def _settings(place: Place) -> dict[str, Any]:
    settings = dict(_DEFAULTS)
    if path := os.environ.get(CONFIG_VARIABLE):
        try:
            found = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{CONFIG_VARIABLE}: {error}") from None
        settings.update((name, found[name]) for name in settings.keys() & found.keys())
    for name, value in place.options.items():
        if name not in settings:
            known = ", ".join(sorted(settings))
            raise ConfigError(f"remote_options: {name} is none of Mooncake's: {known}")
        settings[name] = value
    if place.host:
        settings["master_server_address"] = place.host
    if not settings["master_server_address"]:
        raise ConfigError(f"no master: mooncake://host:port, or in {CONFIG_VARIABLE}")
    return settings


def _try_elsewhere(settings: Mapping[str, Any], arguments: tuple[Any, ...]) -> None:
    """Raise RemoteError unless a client can be set up, in a process of its own: Mooncake's set-up
    keeps the GIL while it tries, for a minute and a half where there is no answer.
    """
    _reach(settings["master_server_address"])
    if settings["metadata_server"].startswith("http"):
        _reach(urlsplit(settings["metadata_server"]).netloc)
    command = [sys.executable, "-c", _TRY, json.dumps(arguments)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=TRY_SECONDS)
    except subprocess.TimeoutExpired:
        raise RemoteError(f"no client was set up in {TRY_SECONDS:.0f} s") from None
    if done.returncode:
        raise RemoteError(f"no client can be set up ({done.returncode})")


def _reach(address: str) -> None:
    """Raise RemoteError if nobody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise RemoteError(f"{address}: {error}") from None


def _own_address(master: str) -> str:
    """That of this host, as the master sees it; Mooncake chooses the port."""
    host, _, port = master.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host or master, int(port) if port.isdigit() else 1))  # sends nothing
        except OSError as error:
            raise RemoteError(f"{master}: {error}") from None
        return str(probe.getsockname()[0])
