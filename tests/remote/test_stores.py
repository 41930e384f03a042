"""What lmkv asks of a remote engine's client, of each kind, from a real one."""

import ctypes
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from lmkv._C import RemoteResult
from lmkv.errors import ConfigError
from lmkv.remote.store import Item, Place, RemoteError, RemoteStore, open_store

KIB = 1 << 10
SIZES = [4 * KIB, 100 * KIB, 9 << 20]  # the last in two ranges of S3's


class Slabs:
    """Memory as an engine's slabs are."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size = size

    def item(self, name: str, at: int, size: int) -> Item:
        return Item(name, self.address + at, size)


@pytest.fixture
def slabs() -> Slabs:
    return Slabs(32 << 20)


@pytest.fixture
def store(place: Place, slabs: Slabs) -> Iterator[RemoteStore]:
    store = open_store(place)
    store.register(slabs.address, slabs.size)
    yield store
    store.close()


class Outcomes(dict[str, tuple[RemoteResult, str]]):
    """What became of each item; each is told once."""

    def __call__(self, item: Item, result: RemoteResult, why: str) -> None:
        assert item.name not in self
        self[item.name] = result, why

    @property
    def results(self) -> list[RemoteResult]:
        return [result for result, _ in self.values()]


def carried(call: object, *items: Item) -> list[RemoteResult]:
    outcomes = Outcomes()
    call(items, outcomes)  # type: ignore[operator]
    assert outcomes.keys() == {item.name for item in items}
    return [outcomes[item.name][0] for item in items]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_put_is_got(place: Place, store: RemoteStore, slabs: Slabs, size: int) -> None:
    name = place.name_of(bytes(32), 0, os.urandom(32))
    slabs.memory[:size] = os.urandom(size)
    assert store.exists([name]) == [False]
    assert carried(store.put, slabs.item(name, 0, size)) == [RemoteResult.DONE]
    assert store.exists([name]) == [True]
    assert carried(store.get, slabs.item(name, 16 << 20, size)) == [RemoteResult.DONE]
    begin = 16 << 20
    assert slabs.memory[begin : begin + size] == slabs.memory[:size]
    assert not any(slabs.memory[begin + size : begin + size + KIB])


def test_many_at_once(place: Place, store: RemoteStore, slabs: Slabs) -> None:
    size, count = 64 * KIB, 40
    names = [place.name_of(bytes(32), 0, os.urandom(32)) for _ in range(count)]
    slabs.memory[: count * size] = os.urandom(count * size)
    put = [slabs.item(name, n * size, size) for n, name in enumerate(names)]
    assert set(carried(store.put, *put)) == {RemoteResult.DONE}
    half = 16 << 20
    got = [slabs.item(name, half + n * size, size) for n, name in enumerate(names)]
    missing = slabs.item("v1/nothing", half + count * size, size)
    results = carried(store.get, *got, missing)
    assert results == [RemoteResult.DONE] * count + [RemoteResult.MISSING]
    assert slabs.memory[half : half + count * size] == slabs.memory[: count * size]
    assert store.exists(["v1/nothing", *names]) == [False] + [True] * count


def test_what_is_there_stays(place: Place, store: RemoteStore, slabs: Slabs) -> None:
    name = place.name_of(bytes(32), 0, os.urandom(32))
    slabs.memory[: 4 * KIB] = first = os.urandom(4 * KIB)
    carried(store.put, slabs.item(name, 0, 4 * KIB))
    slabs.memory[: 4 * KIB] = os.urandom(4 * KIB)
    assert carried(store.put, slabs.item(name, 0, 4 * KIB)) == [RemoteResult.THERE]
    carried(store.get, slabs.item(name, 8 * KIB, 4 * KIB))
    assert slabs.memory[8 * KIB : 12 * KIB] == first


@pytest.mark.parametrize("wanted", [4 * KIB, 16 * KIB])
def test_what_has_another_size_is_bad(
    place: Place, store: RemoteStore, slabs: Slabs, wanted: int
) -> None:
    name = place.name_of(bytes(32), 0, os.urandom(32))
    carried(store.put, slabs.item(name, 0, 8 * KIB))
    (result,) = carried(store.get, slabs.item(name, 0, wanted))
    # What Mooncake says of a buffer that is too small it says of other failures, too.
    said_so = place.scheme == "s3" or wanted > 8 * KIB
    assert result is (RemoteResult.BAD if said_so else RemoteResult.FAILED)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (-800, RemoteResult.UNSETTLED),  # TRANSFER_FAIL, after a while without an end of it
        (-1, RemoteResult.UNSETTLED),
        (-900, RemoteResult.FAILED),  # RPC_FAIL: nobody said where it is
        (-704, RemoteResult.MISSING),
        (RuntimeError("gone"), RemoteResult.UNSETTLED),
    ],
)
def test_whether_a_failed_get_may_still_write_is_said(
    mooncake_options: dict[str, str],
    slabs: Slabs,
    answer: int | Exception,
    result: RemoteResult,
) -> None:
    from lmkv.remote import mooncake

    store = mooncake.MooncakeStore(Place.parse("mooncake://", mooncake_options))
    store.register(slabs.address, slabs.size)

    class Failing:
        def batch_get_into(self, names: list[str], to: list[int], sizes: list[int]) -> list[int]:
            assert to == [slabs.address]
            if isinstance(answer, Exception):
                raise answer
            return [answer] * len(names)

    real, store._store = store._store, Failing()
    assert carried(store.get, slabs.item("x", 0, 8 * KIB)) == [result]
    store._store = real
    store.close()


def test_what_is_removed_is_gone(place: Place, store: RemoteStore, slabs: Slabs) -> None:
    name = place.name_of(bytes(32), 0, os.urandom(32))
    carried(store.put, slabs.item(name, 0, 4 * KIB))
    carried(store.get, slabs.item(name, 0, 4 * KIB))
    assert store.remove(name) is RemoteResult.DONE
    assert store.exists([name]) == [False]
    assert carried(store.get, slabs.item(name, 0, 4 * KIB)) == [RemoteResult.MISSING]


def test_other_threads_go_on_meanwhile(place: Place, store: RemoteStore, slabs: Slabs) -> None:
    """The engine's own thread is one of them."""
    size, count = 2 << 20, 8
    names = [place.name_of(bytes(32), 0, os.urandom(32)) for _ in range(count)]
    slabs.memory[: count * size] = os.urandom(count * size)
    gaps, stop = [], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    begin = time.perf_counter()
    carried(store.put, *(slabs.item(name, n * size, size) for n, name in enumerate(names)))
    carried(store.get, *(slabs.item(name, n * size, size) for n, name in enumerate(names)))
    taken = time.perf_counter() - begin
    stop.set()
    ticking.join()
    assert sum(gap for gap in gaps if gap > 0.05) < 0.5 * taken, "the GIL is kept"


def test_several_threads_may_use_it(place: Place, store: RemoteStore, slabs: Slabs) -> None:
    slabs.memory[: 1 << 20] = os.urandom(1 << 20)
    failures: list[str] = []

    def use(n: int) -> None:
        name, at = place.name_of(bytes(32), n, os.urandom(32)), n * 256 * KIB
        put = carried(store.put, slabs.item(name, at, 256 * KIB))
        got = carried(store.get, slabs.item(name, at + (16 << 20), 256 * KIB))
        same = slabs.memory[at : at + 256 * KIB] == slabs.memory[at + (16 << 20) :][: 256 * KIB]
        if put != [RemoteResult.DONE] or got != [RemoteResult.DONE] or not same:
            failures.append(f"{n}: {put} {got} {same}")

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_wrong_credentials_are_said_without_the_secret(
    s3_port: int, monkeypatch: pytest.MonkeyPatch, slabs: Slabs
) -> None:
    from remote_servers import s3_options

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-somebody")
    store = open_store(Place.parse("s3://bucket", s3_options(s3_port)))
    with pytest.raises(RemoteError) as caught:
        store.exists(["x"])
    outcomes = Outcomes()
    store.put([slabs.item("x", 0, 4 * KIB)], outcomes)
    ((result, why),) = outcomes.values()
    assert result is RemoteResult.FAILED
    for text in (str(caught.value), why):
        assert text
        assert "the-secret-of-somebody" not in text
        assert "\n" not in text


def test_options_that_cannot_be_are_refused(mooncake_options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="remote_options"):
        open_store(Place.parse("s3://bucket", {"no_such_option": "1"}))
    with pytest.raises(ConfigError, match="remote_options: colour"):
        open_store(Place.parse("mooncake://127.0.0.1:1", {"colour": "red"}))
    with pytest.raises(ConfigError, match="no master"):
        open_store(Place.parse("mooncake://", {}))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/x", "s3://bucket"),
        ("bucket", "s3://bucket"),
        ("s3:///prefix", "no bucket"),
        ("s3://key:secret@bucket", "credentials"),
        ("s3://bucket?region=x", "remote_options"),
        ("file://host/x", "file:///directory"),
        ("file:relative", "file:///directory"),
    ],
)
def test_addresses_that_cannot_be_are_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Place.parse(url)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("secret_access_key", "x"),
        ("aws_access_key_id", "x"),
        ("session_token", "x"),
        ("aws_sse_customer_key_base64", "x"),
        ("proxy_url", "http://user:pass@proxy:1"),
    ],
)
def test_credentials_are_refused_as_options_and_not_shown(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match="environment") as caught:
        Place.parse("s3://bucket", {option: value})
    assert "pass" not in str(caught.value).replace("passphrase", "")


def test_an_address_that_is_refused_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        Place.parse("https://user:hidden@host/x")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "variable", "is_signed"),
    [
        ("", "", False),
        ("https://host", "", False),
        ("http://host", "", True),
        ("", "http://host", True),
        ("", "https://host", False),
    ],
)
def test_payloads_are_signed_where_there_is_no_tls(
    option: str, variable: str, is_signed: bool, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("AWS_ENDPOINT_URL", variable)
    options = {"region": "eu-1", **({"aws_endpoint": option} if option else {})}
    store = open_store(Place.parse("s3://bucket", options))
    config = {str(name).lower(): value for name, value in store._store.config.items()}
    assert (config.get("unsigned_payload") != "true") == is_signed


@pytest.mark.parametrize(
    ("url", "said", "name"),
    [
        ("s3://bucket", "s3://bucket", "v1/"),
        ("s3://bucket/a/b/", "s3://bucket/a/b", "a/b/v1/"),
        ("mooncake://host:1", "mooncake://host:1", "v1/"),
        ("mooncake://host:1/pool", "mooncake://host:1/pool", "pool/v1/"),
    ],
)
def test_names_are_the_paths_of_files(url: str, said: str, name: str) -> None:
    place = Place.parse(url)
    assert str(place) == said
    assert Place.parse(str(place)) == place
    key = bytes(range(32))
    assert place.name_of(b"\xab" * 32, 3, key) == (f"{name}abababababababab/r3/000/{key.hex()}.kv")


def test_a_master_that_accepts_and_never_answers_stops_no_other_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mooncake's own set-up would keep the GIL for a minute and a half."""
    from lmkv.remote import mooncake

    monkeypatch.setattr(mooncake, "TRY_SECONDS", 4.0)
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    gaps, ends = [], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not ends.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    begin = time.monotonic()
    with pytest.raises(RemoteError, match="client"):
        open_store(
            Place.parse(
                f"mooncake://127.0.0.1:{port}",
                {"metadata_server": f"http://127.0.0.1:{port}/metadata"},
            )
        )
    ends.set()
    ticking.join()
    silent.close()
    assert time.monotonic() - begin < 20
    assert max(gaps) < 1
