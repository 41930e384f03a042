"""KV events for KV-aware routers: the engine's own stores, and what it sees go."""

import time

import pytest
from scheduler_harness import BLOCK, CHUNK, PER_CHUNK, Engine, chunk_file, key_of
from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
from worker_harness import RealWorker, files, run

from lmkv.vllm import events

PROMPT = 2 * CHUNK + BLOCK + 9


def as_published(hashes):
    return [maybe_convert_block_hash(each) for each in hashes]


def gone(engine):
    """The blocks of the chunks that were taken back since the last call."""
    events = [event for event in taken(engine) if isinstance(event, BlockRemoved)]
    return [event.block_hashes for event in events if event.medium == MEDIUM_STORAGE]


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root, events=True)


def taken(engine):
    """Events since the last call."""
    events, engine.published = engine.published, []
    return events


def test_a_chunk_in_the_directory_is_announced_block_by_block(engine):
    request = engine.request("a", PROMPT, cache_salt="tenant")
    engine.run()
    seen = taken(engine)
    stored = [event for event in seen if event.medium == MEDIUM_STORAGE]
    assert all(isinstance(event, BlockStored) for event in stored)
    hashes = as_published(request.block_hashes)
    assert [event.block_hashes for event in stored] == [
        hashes[:PER_CHUNK],
        hashes[PER_CHUNK : 2 * PER_CHUNK],
        hashes[2 * PER_CHUNK : 2 * PER_CHUNK + 1],
    ]
    assert [event.parent_block_hash for event in stored] == [
        None,
        hashes[PER_CHUNK - 1],
        hashes[2 * PER_CHUNK - 1],
    ]
    assert [token for event in stored for token in event.token_ids] == list(
        request.all_token_ids[: 2 * CHUNK + BLOCK]
    )
    assert {event.block_size for event in stored} == {BLOCK}
    # As vLLM announces the same blocks of its own cache.
    own = {
        block_hash: extra
        for event in seen
        if event.medium != MEDIUM_STORAGE
        for block_hash, extra in zip(event.block_hashes, event.extra_keys, strict=True)
    }
    for event in stored:
        for block_hash, extra in zip(event.block_hashes, event.extra_keys, strict=True):
            assert extra == own[block_hash]
    assert stored[0].extra_keys[0] == ("tenant",)


def test_a_store_that_was_dropped_is_not_announced(engine):
    engine.worker.drop_stores = True
    engine.request("a", PROMPT)
    engine.run()
    assert not [event for event in taken(engine) if event.medium == MEDIUM_STORAGE]
    assert not engine.side._events._planned


def test_a_chunk_that_failed_to_load_is_taken_back(engine, root):
    request = engine.request("a", PROMPT)
    engine.run()
    engine.scheduler.reset_prefix_cache()
    taken(engine)
    engine.worker.fail_chunks = {1}
    engine.request("b", PROMPT)
    engine.step()
    chunk_file(root, key_of(request, 2 * PER_CHUNK)).unlink()
    engine.step()
    removed = gone(engine)
    assert removed == [as_published(request.block_hashes[PER_CHUNK : 2 * PER_CHUNK])]
    engine.worker.fail_chunks = set()
    engine.run()
    stored = [each.block_hashes for each in taken(engine) if each.medium == MEDIUM_STORAGE]
    assert removed[0] in stored, "it was stored anew"


def test_what_another_engine_stored_is_not_ours_to_take_back(engine, tiny_model, root):
    engine.request("a", PROMPT)
    engine.run()
    other = Engine(tiny_model, root, events=True)
    other.worker.fail_chunks = {0}
    other.request("b", PROMPT)
    other.step()
    other.step()
    assert gone(other) == []


def test_nothing_is_kept_where_nobody_listens(tiny_model, root):
    engine = Engine(tiny_model, root)
    engine.request("a", PROMPT)
    engine.run()
    assert list(engine.connector.take_events()) == []
    assert not engine.side._events._stored


def test_only_so_many_chunks_are_remembered(engine, monkeypatch):
    monkeypatch.setattr(events, "REMEMBERED_CHUNKS", 2)
    request = engine.request("a", PROMPT)
    engine.run()
    assert len(engine.side._events._stored) == 2
    engine.side._events.gone([key_of(request, PER_CHUNK)])  # the oldest
    assert engine.side.take_events() == []


def test_what_this_engine_evicts_is_taken_back(tiny_model, root):
    engine = Engine(
        tiny_model,
        root,
        hello=False,
        events=True,
        extra={"host_memory": "64MiB", "capacity": "600KiB", "free_space_floor": 0},
    )
    worker = RealWorker(engine)
    engine.greet(worker.connector.get_handshake_metadata())
    try:
        request = engine.request("a", PROMPT)
        run(engine)
        taken(engine)
        assert len(files(root)) == 3
        time.sleep(5.1)  # what was stored a moment ago is not evicted
        deadline = time.monotonic() + 20
        expected, removed = set(as_published(request.block_hashes)), set()
        for number in range(1000):
            engine.request(f"b{number}", [100 + number, *range(CHUNK)])
            run(engine)
            removed |= {each for blocks in gone(engine) for each in blocks}
            if removed >= expected or time.monotonic() > deadline:
                break
        assert removed >= expected
    finally:
        worker.connector.shutdown()


def test_an_eviction_that_a_worker_reports_is_announced(engine):
    request = engine.request("a", PROMPT)
    engine.run()
    taken(engine)
    engine.worker.evicted = {key_of(request, PER_CHUNK), bytes(32)}
    engine.request("b", [500, *range(40)])
    engine.step()
    assert gone(engine) == [as_published(request.block_hashes[:PER_CHUNK])]


@pytest.mark.parametrize("wishes", [{}, {"load": False}])
def test_a_chunk_that_another_engine_evicted_is_taken_back_when_it_is_looked_for(
    engine, root, wishes, monkeypatch
):
    request = engine.request("a", PROMPT)
    engine.run()
    engine.scheduler.reset_prefix_cache()
    chunk_file(root, key_of(request, 2 * PER_CHUNK)).unlink()
    taken(engine)
    engine.side._lookup.forget()  # as after some seconds
    extra = {"kv_transfer_params": {"lmkv": wishes}}
    engine.request("b", PROMPT, extra_args=extra)
    engine.step()
    assert gone(engine) == [as_published(request.block_hashes[PER_CHUNK : 2 * PER_CHUNK])]
