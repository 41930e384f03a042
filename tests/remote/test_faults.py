"""A remote tier that damages, delays, hangs, is full or gone: what is loaded stays right."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from remote_hosts import BLOCK_BYTES, BLOCKS, PER_CHUNK, Host, key
from remote_servers import MooncakeServers, mooncake, s3_options
from tcp_proxy import Proxy

from lmkv._C import RemoteOrderKind, RemoteResult
from lmkv.errors import ConfigError
from lmkv.remote.carriers import Budget, Carriers
from lmkv.remote.store import Done, Item, Place, RemoteError

CONTENT = os.urandom(BLOCKS * BLOCK_BYTES)
CHUNK_BYTES = PER_CHUNK * BLOCK_BYTES
FEW = 4  # chunks


@pytest.fixture
def proxy(s3_port: int) -> Iterator[Proxy]:
    proxy = Proxy(s3_port)
    yield proxy
    proxy.close()


@pytest.fixture
def place(request: pytest.FixtureRequest, proxy: Proxy, credentials: None) -> Place:
    """S3, behind the proxy, with the first chunks of CONTENT in it."""
    place = Place.parse(f"s3://bucket/{request.node.name}", s3_options(proxy.port))
    folder = request.getfixturevalue("tmp_path") / "filler"
    with Host(folder, place, CONTENT) as host:
        for n in range(FEW):
            assert host.store(n) == ""
        assert host.stat("remote_chunks_stored") == FEW
    return place


def expect_all_back(host: Host) -> None:
    deadline = time.monotonic() + 30
    while host.stat("slabs_in_use") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host.stat("slabs_in_use") == 0
    assert host.stat("remote_load_bytes_in_flight") == 0
    assert host.stat("remote_store_bytes_in_flight") == 0


def test_damage_on_the_way_reaches_no_block(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    with Host(tmp_path / "b", place) as host:
        host.wait_until_connected()
        proxy.flips = True
        done = host.load(*range(FEW))
        assert done.failed_chunks == list(range(FEW))
        assert not any(host.memory.raw)
        assert 3 <= host.stat("chunks_bad") <= FEW
        assert not list((tmp_path / "b").rglob("*.kv"))
        # It is the way that does it: one chunk is taken for damaged, and removed, and then nothing
        # more is asked for.
        assert host.stat("chunks_bad_removed") == 1
        assert host.engine.roots_out_of_service() == [1]
        proxy.flips = False
        deadline = time.monotonic() + 60
        while host.engine.roots_out_of_service():
            host.engine.poll()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = host.load(*range(FEW))
        assert len(done.failed_chunks) == 1
        for n in set(range(FEW)) - set(done.failed_chunks):
            assert host.bytes_of(n) == CONTENT[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES]
        expect_all_back(host)


def test_one_that_is_gone_is_left_alone_and_found_again(
    place: Place, proxy: Proxy, tmp_path: Path
) -> None:
    with Host(tmp_path / "b", place, load_timeout=1.0) as host:
        host.wait_until_connected()
        proxy.is_silent = True
        begin = time.monotonic()
        host.engine.load([(bytes(31) + b"\0", 0, PER_CHUNK, 0, host.blocks(0))])
        completions = []
        while not completions:
            completions = host.engine.poll()
            time.sleep(0.005)
        assert 0.9 < time.monotonic() - begin < 3
        assert completions[0].failed_chunks == [0]
        assert host.engine.roots_out_of_service() == [1]
        begin = time.monotonic()
        host.engine.load([(bytes(31) + b"\1", 64, PER_CHUNK, 0, host.blocks(1))])
        while not (completions := host.engine.poll()):
            assert time.monotonic() - begin < 0.5, "it was asked though it is out of service"
        proxy.is_silent = False
        proxy.cut()
        deadline = time.monotonic() + 60
        while host.engine.roots_out_of_service():
            host.engine.poll()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert host.load(2).failed_chunks == []
        assert host.bytes_of(2) == CONTENT[2 * CHUNK_BYTES : 3 * CHUNK_BYTES]
        assert not any(host.bytes_of(0) + host.bytes_of(1))
        expect_all_back(host)


def test_a_slow_one_is_right(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    with Host(tmp_path / "b", place) as host:
        host.wait_until_connected()
        proxy.delay = 0.02
        assert host.load(*range(FEW)).failed_chunks == []
        assert host.memory.raw[: FEW * CHUNK_BYTES] == CONTENT[: FEW * CHUNK_BYTES]


def test_connections_that_are_cut_are_made_anew(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    with Host(tmp_path / "b", place) as host:
        host.wait_until_connected()
        for n in range(FEW):
            proxy.cut()
            assert host.load(n).failed_chunks == []
        assert host.memory.raw[: FEW * CHUNK_BYTES] == CONTENT[: FEW * CHUNK_BYTES]


def test_a_full_one_refuses_stores_and_nothing_else(tmp_path: Path) -> None:
    """Of more chunks than it holds it takes some, and the directory has all."""
    count, segment = 120, 16 << 20  # 120 x 260 KiB
    with mooncake(tmp_path / "mooncake", segment=str(segment)) as options:
        place = Place.parse("mooncake://", options)
        with Host(tmp_path / "a", place, CONTENT) as host:
            host.wait_until_connected()
            for n in range(count):
                assert host.engine.store(key(n), 0, host.blocks(n % (BLOCKS // PER_CHUNK)))
                assert host.ended()[-1].error == ""
            refused = host.stat("remote_stores_failed") + host.stat("remote_stores_dropped")
            assert refused > 0
            assert len(list((tmp_path / "a").rglob("*.kv"))) == count
            assert host.stat("stores_failed") == 0
            expect_all_back(host)
        with Host(tmp_path / "a", place) as again:
            again.engine.load([(key(0), 0, PER_CHUNK, 0, again.blocks(0))])
            assert again.ended()[0].failed_chunks == []
            assert again.bytes_of(0) == CONTENT[:CHUNK_BYTES]


def test_a_master_that_dies_costs_nothing_but_its_chunks(tmp_path: Path) -> None:
    with mooncake(tmp_path / "mooncake") as options:
        place = Place.parse("mooncake://", options)
        with Host(tmp_path / "a", place, CONTENT) as host:
            host.store(0)
        last = Host(tmp_path / "b", place, load_timeout=2.0).wait_until_connected()
        assert last.load(0).failed_chunks == []
    # Master and memory are gone.
    last.engine.load([(bytes(31) + b"\1", 64, PER_CHUNK, 0, last.blocks(1))])
    begin, completions = time.monotonic(), []
    while not completions:
        completions = last.engine.poll()
        assert time.monotonic() - begin < 10
        time.sleep(0.005)
    assert completions[0].failed_chunks == [0]
    assert last.bytes_of(0) == CONTENT[:CHUNK_BYTES]
    assert last.carriers is not None
    last.carriers.stop()
    last.engine.close(60)
    last.carriers.join()


@pytest.mark.parametrize("who", ["master", "host"])
def test_mooncake_servers_that_come_back_are_used_again(who: str, tmp_path: Path) -> None:
    """Both forget what they held; neither makes an engine wait, or start again."""
    with (
        closing(MooncakeServers(tmp_path / "mooncake")) as servers,
        ExitStack() as ends,
    ):
        servers.start("master")
        servers.start("host")
        place = Place.parse("mooncake://", servers.options)
        a, b = (
            ends.enter_context(Host(tmp_path / name, place, fill, load_timeout=2.0))
            for name, fill in (("a", CONTENT), ("b", b""))
        )
        for each in (a, b):
            each.wait_until_connected()
        for n in (0, 1):
            assert a.store(n) == ""
        assert b.load(0).failed_chunks == []
        servers.kill(who)
        begin = time.monotonic()
        assert b.load(1).failed_chunks == [0], "what was there is gone"
        assert time.monotonic() - begin < 5
        assert not any(b.bytes_of(1))
        assert a.store(2) == "", "the directory is well"
        servers.start(who)
        deadline, chunk = time.monotonic() + 120, 2
        while b.load(chunk).failed_chunks:
            assert time.monotonic() < deadline, (a.engine.stats(), b.engine.stats())
            chunk += 1 if chunk + 1 < BLOCKS // PER_CHUNK else 1 - chunk
            assert a.store(chunk) == ""
            time.sleep(0.5)
        whole = slice(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)
        assert b.memory.raw[whole] == CONTENT[whole]
        for each in (a, b):
            assert each.stat("slabs_abandoned") <= 3


class Unruly:
    """A client that keeps to nothing."""

    def __init__(self, manner: str) -> None:
        self._manner = manner

    def register(self, address: int, size: int) -> None:
        if self._manner == "register":
            raise RemoteError("no memory may be registered")

    def exists(self, names: Sequence[str]) -> list[bool]:
        raise RemoteError("unused")

    def get(self, items: Sequence[Item], done: Done) -> None:
        if self._manner == "silent":
            return
        if self._manner == "twice":
            for item in items:
                done(item, RemoteResult.MISSING, "")
                done(item, RemoteResult.DONE, "")
            return
        if self._manner == "half" and items:
            done(items[0], RemoteResult.MISSING, "")
        raise OSError("what no client should raise")

    put = get

    def remove(self, name: str) -> RemoteResult:
        raise OSError("what no client should raise")

    def close(self) -> None:
        raise OSError("what no client should raise")


@pytest.mark.parametrize("manner", ["silent", "twice", "half", "raising"])
def test_whatever_a_client_does_every_order_ends(manner: str, tmp_path: Path) -> None:
    place = Place.parse("s3://bucket")
    with Host(tmp_path, place, CONTENT, open_=lambda: Unruly(manner)) as host:
        host.wait_until_connected()
        assert host.store(0) == ""
        assert host.load(1, 2, 3).failed_chunks == [0, 1, 2]
        expect_all_back(host)


def test_one_that_cannot_be_reached_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmkv.remote.carriers.FIRST_PAUSE_SECONDS", 0.05)
    tries: list[int] = []

    def open_() -> Unruly:
        tries.append(1)
        if len(tries) < 3:
            raise RemoteError("nobody is there")
        return Unruly("register" if len(tries) == 3 else "silent")

    with Host(tmp_path, Place.parse("s3://bucket"), CONTENT, open_=open_) as host:
        host.store(0)
        host.wait_until_connected()
        assert host.said == [
            "it cannot be used: nobody is there",
            "it cannot be used: nobody is there",
            "it was not closed: what no client should raise",
            "it cannot be used: no memory may be registered",
            "",
        ]


def test_what_cannot_ever_work_is_said_once(tmp_path: Path) -> None:
    def open_() -> Unruly:
        raise ConfigError("its library is missing")

    with Host(tmp_path, Place.parse("s3://bucket"), CONTENT, open_=open_) as host:
        assert host.store(0) == ""
        assert host.stat("remote_stores_failed") == 1
        assert host.load(0).failed_chunks == []
        assert host.said == ["it cannot be used: its library is missing"]


def test_bandwidth_is_kept_to(place: Place, tmp_path: Path) -> None:
    rate = 4 * CHUNK_BYTES
    with Host(tmp_path / "b", place, CONTENT, bandwidth=rate) as host:
        host.wait_until_connected()
        begin = time.monotonic()
        for n in range(8, 14):
            assert host.store(n) == ""
        # The first goes at once.
        assert time.monotonic() - begin > 0.9 * 5 * CHUNK_BYTES / rate


def test_all_threads_of_a_lane_share_one_budget() -> None:
    now = [10.0]
    budget = Budget(1000, lambda: now[0])
    assert budget.spend(500) == 0.0
    assert budget.spend(500) == pytest.approx(0.5)
    assert budget.spend(100) == pytest.approx(1.0)
    now[0] = 20.0
    assert budget.spend(1) == 0.0
    assert Budget(0).spend(1 << 40) == 0.0


def test_two_orders_for_one_chunk_both_end_well(tmp_path: Path) -> None:
    """Of REMOVEs the core may have two."""
    finished: dict[int, RemoteResult] = {}

    class Core:
        def finish_remote(self, ticket: int, result: RemoteResult, why: str = "") -> None:
            assert ticket not in finished, why
            finished[ticket] = result

    class Order(NamedTuple):
        ticket: int
        kind: RemoteOrderKind
        key: bytes = bytes(32)
        address: int = 4096
        bytes: int = 4096

    class Store(Unruly):
        def put(self, items: Sequence[Item], done: Done) -> None:
            assert len(items) == 1
            done(items[0], RemoteResult.DONE, "")

        def remove(self, name: str) -> RemoteResult:
            return RemoteResult.DONE

    carriers = object.__new__(Carriers)
    carriers._engine = Core()  # type: ignore[assignment]
    carriers._store = Store("")
    carriers._name_of = bytes.hex
    put, remove = RemoteOrderKind.PUT, RemoteOrderKind.REMOVE
    carriers._carry([Order(1, put), Order(2, put), Order(3, remove), Order(4, remove)])  # type: ignore[list-item]
    assert finished == dict.fromkeys((1, 2, 3, 4), RemoteResult.DONE)


def test_a_process_that_does_not_shut_down_ends_all_the_same(
    s3_port: int, credentials: None, tmp_path: Path
) -> None:
    """A thread that comes back from the core when there is no interpreter any more ends badly."""
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from lmkv.remote import carriers; carriers.WAIT_SECONDS = 0.0005  # in and out\n"
        "from remote_hosts import Host\n"
        "from remote_servers import s3_options\n"
        "from lmkv.remote.store import Place\n"
        "from lmkv.remote.lookup import RemoteLookup, open_presence\n"
        f"place = Place.parse('s3://bucket/exit', s3_options({s3_port}))\n"
        f"host = Host(Path({str(tmp_path)!r}), place).wait_until_connected()\n"
        "lookup = RemoteLookup(lambda: open_presence(place, bytes(32), 1))\n"
        "import builtins; builtins.kept = host, lookup\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
