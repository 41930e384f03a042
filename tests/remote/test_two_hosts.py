"""Two hosts without a directory in common, and a real remote engine between them."""

import os
from pathlib import Path

import pytest
from remote_hosts import BLOCK_BYTES, BLOCKS, PER_CHUNK, Host

from lmkv.remote.store import Place

CONTENT = os.urandom(BLOCKS * BLOCK_BYTES)
CHUNKS = BLOCKS // PER_CHUNK


@pytest.fixture(params=["s3", "mooncake", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place.parse(f"file://{tmp_path}/shared")
    from remote_servers import s3_options

    request.getfixturevalue("credentials")
    prefix = request.node.name.replace("[", "-").rstrip("]")
    if request.param == "s3":
        port = request.getfixturevalue("s3_port")
        return Place.parse(f"s3://bucket/{prefix}", s3_options(port))
    options = request.getfixturevalue("mooncake_options")
    return Place.parse(f"mooncake:///{prefix}", options)


def test_what_one_stored_the_other_loads(place: Place, tmp_path: Path) -> None:
    with Host(tmp_path / "a", place, CONTENT) as first:
        for n in range(CHUNKS):
            assert first.store(n) == ""
        assert first.stat("remote_chunks_stored") == CHUNKS
        assert first.stat("slabs_in_use") == 0
    with Host(tmp_path / "b", place) as second:
        if second.carriers is not None:
            second.wait_until_connected()
        done = second.load(*range(CHUNKS))
        assert done.failed_chunks == [], done.error
        assert done.remote_chunks == list(range(CHUNKS))
        assert second.memory.raw == CONTENT
        assert second.stat("remote_hits") == CHUNKS
        assert second.stat("bytes_loaded_remote") > len(CONTENT)
        promoted = second.stat("chunks_promoted") + second.stat("promotions_dropped")
        assert promoted == CHUNKS
        assert second.stat("chunks_promoted") > 0
        assert second.stat("chunks_bad") == second.stat("chunks_missing") == 0
        assert len(list((tmp_path / "b").rglob("*.kv"))) == second.stat("chunks_promoted")


def test_what_was_promoted_outlives_the_remote(place: Place, tmp_path: Path) -> None:
    with Host(tmp_path / "a", place, CONTENT) as first:
        first.store(1)
    with Host(tmp_path / "b", place) as second:
        if second.carriers is not None:
            second.wait_until_connected()
        second.load(1)
    nowhere = Place.parse(f"file://{tmp_path}/nowhere")
    with Host(tmp_path / "b", nowhere) as again:
        done = again.load(1)
        assert done.failed_chunks == []
        assert done.remote_chunks == []
        assert again.bytes_of(1) == first.bytes_of(1)


def test_what_nobody_has_is_a_miss(place: Place, tmp_path: Path) -> None:
    with Host(tmp_path / "a", place, CONTENT) as host:
        if host.carriers is not None:
            host.wait_until_connected()
        assert host.load(3).failed_chunks == [0]
        assert host.stat("chunks_missing") == 1
        assert host.bytes_of(3) == CONTENT[3 * PER_CHUNK * BLOCK_BYTES :][: PER_CHUNK * BLOCK_BYTES]
