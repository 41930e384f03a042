"""What waiting requests load, driven through vLLM's real scheduler."""

import pytest
from scheduler_harness import BLOCK, CHUNK, PER_CHUNK, Engine, chunk_file, key_of, put
from vllm.v1.request import RequestStatus


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root)


def loaded_blocks(load):
    return [block for chunk in load.chunks for block in chunk.block_ids]


def granting(engine, tokens, monkeypatch):
    """Have vLLM give the first load so many tokens, whatever was promised."""
    ask = engine.connector.get_num_new_matched_tokens
    answers = iter([(tokens, True)])

    def matched(request, computed_tokens):
        promised = ask(request, computed_tokens)
        return next(answers, promised)

    monkeypatch.setattr(engine.connector, "get_num_new_matched_tokens", matched)


def test_a_cold_directory_loads_nothing(engine):
    engine.request("a", 500)
    output, metadata = engine.step()
    assert output.num_scheduled_tokens == {"a": 500}
    assert metadata.loads == []
    engine.run()
    engine.assert_at_rest()


def test_present_chunks_are_loaded_and_the_rest_is_computed(engine, root):
    request = engine.request("a", 3 * CHUNK + 50)
    put(root, key_of(request, PER_CHUNK), key_of(request, 2 * PER_CHUNK))
    output, metadata = engine.step()
    assert output.num_scheduled_tokens == {}
    assert request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
    (load,) = metadata.loads
    assert load.request_id == "a"
    assert [
        (chunk.key, chunk.token_begin, chunk.block_count, chunk.first_block)
        for chunk in load.chunks
    ] == [
        (key_of(request, PER_CHUNK), 0, PER_CHUNK, 0),
        (key_of(request, 2 * PER_CHUNK), CHUNK, PER_CHUNK, 0),
    ]
    blocks = engine.scheduler.kv_cache_manager.get_block_ids("a")[0]
    assert loaded_blocks(load) == blocks[: 2 * PER_CHUNK]
    engine.step()
    output, _ = engine.step()
    assert output.num_scheduled_tokens == {"a": CHUNK + 50}
    engine.run()
    assert engine.counted == {"tokens_loaded": 2 * CHUNK}
    engine.assert_at_rest()


def test_the_prefix_ends_at_the_first_missing_chunk(engine, root):
    request = engine.request("a", 4 * CHUNK)
    put(root, key_of(request, PER_CHUNK), key_of(request, 3 * PER_CHUNK))
    _, metadata = engine.step()
    assert [chunk.token_begin for chunk in metadata.loads[0].chunks] == [0]


def test_at_least_one_token_is_computed(engine, root):
    request = engine.request("a", 2 * CHUNK)
    put(root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(2)))
    engine.step()
    assert request.num_computed_tokens == CHUNK
    engine.run()
    engine.assert_at_rest()


def test_the_longest_tail_is_loaded_behind_the_last_chunk(engine, root):
    request = engine.request("a", CHUNK + 3 * BLOCK + 5)
    put(root, key_of(request, PER_CHUNK), *(key_of(request, PER_CHUNK + i) for i in (1, 2)))
    _, metadata = engine.step()
    tail = metadata.loads[0].chunks[-1]
    assert (tail.key, tail.token_begin, tail.block_count, tail.first_block) == (
        key_of(request, PER_CHUNK + 2),
        CHUNK,
        2,
        0,
    )
    assert request.num_computed_tokens == CHUNK + 2 * BLOCK


def test_a_prompt_shorter_than_a_chunk_loads_its_tail(engine, root):
    request = engine.request("a", 2 * BLOCK + 1)
    put(root, key_of(request, 2))
    engine.step()
    assert request.num_computed_tokens == 2 * BLOCK
    engine.run()
    engine.assert_at_rest()


def test_without_tails_only_whole_chunks_are_loaded(tiny_model, root):
    engine = Engine(tiny_model, root, extra={"store_tail": False})
    request = engine.request("a", CHUNK + 2 * BLOCK + 1)
    put(root, key_of(request, PER_CHUNK), key_of(request, PER_CHUNK + 2))
    engine.step()
    assert request.num_computed_tokens == CHUNK


def test_a_local_hit_inside_a_chunk_loads_the_blocks_behind_it(engine, root):
    engine.request("warm", BLOCK + 1)
    engine.run()
    request = engine.request("a", CHUNK + 1)
    put(root, key_of(request, PER_CHUNK))
    _, metadata = engine.step()
    (chunk,) = metadata.loads[0].chunks
    assert (chunk.block_count, chunk.first_block, len(chunk.block_ids)) == (PER_CHUNK, 1, 3)
    assert request.num_computed_tokens == CHUNK
    engine.run()
    engine.assert_at_rest()


def storing(tiny_model, root, tokens=2 * CHUNK + BLOCK + 5, **worker):
    """An engine that is storing a prompt of so many tokens, and has forgotten it itself."""
    engine = Engine(tiny_model, root)
    for name, value in worker.items():
        setattr(engine.worker, name, value)
    first = engine.request("first", tokens)
    for _ in range(3):
        engine.step()
    assert first.is_finished()
    assert not list(root.rglob("*.kv"))
    engine.scheduler.reset_prefix_cache()
    return engine


def test_what_is_on_its_way_to_the_directory_is_loaded(tiny_model, root):
    engine = storing(tiny_model, root, hold_files=True)
    request = engine.request("a", 2 * CHUNK + BLOCK + 9)
    _, metadata = engine.step()
    assert [chunk.token_begin for chunk in metadata.loads[0].chunks] == [0, CHUNK, 2 * CHUNK]
    assert request.num_computed_tokens == 2 * CHUNK + BLOCK
    engine.worker.hold_files = False
    engine.run()
    engine.assert_at_rest()


def test_a_gap_in_the_directory_is_bridged_by_what_is_on_its_way(tiny_model, root):
    engine = storing(tiny_model, root, hold_files=True)
    request = engine.request("a", 4 * CHUNK + 9)
    put(root, key_of(request, PER_CHUNK), key_of(request, 3 * PER_CHUNK))
    engine.step()
    assert request.num_computed_tokens == 3 * CHUNK


def test_what_is_not_gathered_yet_is_not_loaded(tiny_model, root):
    engine = storing(tiny_model, root, hold_stores=True)
    request = engine.request("a", 2 * CHUNK + 9)
    assert not engine.side._lookup.find(request.block_hashes, 0, 2 * PER_CHUNK)


@pytest.mark.parametrize("tokens", [2 * CHUNK + BLOCK + 9, 2 * BLOCK + 9])
def test_what_failed_to_load_on_its_way_is_not_loaded_again(tiny_model, root, tokens):
    engine = storing(tiny_model, root, tokens, hold_files=True)
    engine.worker.fail_chunks = {0, 1, 2}
    engine.request("a", tokens)
    steps = [engine.step()[1] for _ in range(6)]
    assert len([load for metadata in steps for load in metadata.loads]) == 1
    engine.worker.hold_files = False
    engine.run()
    engine.assert_at_rest()


def test_what_was_loaded_on_its_way_and_then_not_stored_is_stored_anew(tiny_model, root):
    engine = storing(tiny_model, root, hold_files=True, drop_stores=True)
    engine.request("a", 2 * CHUNK + BLOCK + 9)
    engine.step()
    engine.worker.hold_files = False
    engine.run()
    engine.worker.drop_stores = False
    engine.request("b", 2 * CHUNK + BLOCK + 11)
    assert len([s for metadata in engine.run() for s in metadata.stores]) == 3
    engine.assert_at_rest()


def test_what_is_loaded_on_its_way_counts_as_used_when_it_is_there(tiny_model, root):
    engine = storing(tiny_model, root, hold_files=True)
    engine.request("a", 2 * CHUNK + 9)
    _, metadata = engine.step()
    used_at = metadata.loads[0].used_at
    engine.worker.hold_files = False
    uses = [use for metadata in engine.run() for use in metadata.uses]
    assert {use.used_at for use in uses} == {used_at}
    assert [begin for use in uses for _, begin in use.chunks] == [0, CHUNK]


def test_a_failed_chunk_is_computed_not_asked_for_again_and_stored_anew(engine, root):
    request = engine.request("a", 3 * CHUNK + 5)
    put(root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(3)))
    engine.worker.fail_chunks = {1}
    steps = engine.run()
    assert len([load for metadata in steps for load in metadata.loads]) == 1
    stored = [store.key for metadata in steps for store in metadata.stores]
    assert stored == [key_of(request, 2 * PER_CHUNK)]
    assert engine.counted == {"tokens_loaded": CHUNK, "tokens_failed": 2 * CHUNK}
    engine.assert_at_rest()
    # Stored again, it is believed again.
    engine.worker.fail_chunks = set()
    engine.scheduler.reset_prefix_cache()
    again = engine.request("b", 3 * CHUNK + 5)
    engine.step()
    assert again.num_computed_tokens == 3 * CHUNK


def test_a_failed_first_chunk_does_not_reload_for_ever(engine, root):
    request = engine.request("a", 2 * CHUNK + 5)
    put(root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(2)))
    engine.worker.fail_chunks = {0}
    steps = engine.run()
    assert len([load for metadata in steps for load in metadata.loads]) == 1
    assert key_of(request, PER_CHUNK) in [s.key for metadata in steps for s in metadata.stores]
    engine.assert_at_rest()


def test_a_failed_tail_is_stored_anew(engine, root):
    request = engine.request("a", 2 * BLOCK + 5)
    put(root, key_of(request, 2))
    engine.worker.fail_chunks = {0}
    steps = engine.run()
    assert [s.key for metadata in steps for s in metadata.stores] == [key_of(request, 2)]
    engine.assert_at_rest()


def test_a_failed_load_is_forgiven_after_a_while(engine, root):
    now = [100.0]
    engine.side._lookup._clock = lambda: now[0]
    request = engine.request("a", CHUNK + 5)
    put(root, key_of(request, PER_CHUNK))
    engine.side._lookup.mark_absent([key_of(request, PER_CHUNK)])
    assert not engine.side._lookup.find(request.block_hashes, 0, PER_CHUNK)
    now[0] += 61
    assert len(engine.side._lookup.find(request.block_hashes, 0, PER_CHUNK)) == 1


def test_a_bad_chunk_that_stays_in_the_directory_is_not_taken_for_stored(engine, root):
    first = engine.request("a", CHUNK + 5)
    put(root, key_of(first, PER_CHUNK))
    engine.side._lookup.mark_absent([key_of(first, PER_CHUNK)])
    engine.worker.drop_stores = True
    engine.run()
    engine.worker.drop_stores = False
    second = engine.request("b", CHUNK + 9)
    stores = [store.key for metadata in engine.run() for store in metadata.stores]
    assert stores == [key_of(second, PER_CHUNK)]


def test_an_abort_during_a_load_keeps_the_blocks_until_it_ends(engine, root):
    request = engine.request("a", 2 * CHUNK)
    put(root, key_of(request, PER_CHUNK))
    engine.worker.hold_loads = engine.worker.hold_cancelled = True
    engine.step()
    free = engine.free_blocks
    engine.abort(request)
    engine.step()
    assert engine.free_blocks == free
    assert engine.scheduler.has_requests()
    engine.worker.hold_loads = False
    engine.run()
    engine.assert_at_rest()


def test_an_abort_before_anything_was_scheduled_leaves_nothing(engine, root):
    request = engine.request("a", 2 * CHUNK)
    put(root, key_of(request, PER_CHUNK))
    assert engine.side.matched_tokens(request, 0) == CHUNK
    engine.abort(request)
    engine.run()
    engine.assert_at_rest()


def test_prompt_logprobs_are_computed_not_loaded(engine, root):
    request = engine.request("a", 2 * CHUNK, prompt_logprobs=1)
    put(root, key_of(request, PER_CHUNK))
    assert engine.side.matched_tokens(request, 0) == 0
    output, metadata = engine.step()
    assert metadata.loads == []
    assert output.num_scheduled_tokens == {"a": 2 * CHUNK}


def test_a_producer_loads_nothing(tiny_model, root):
    engine = Engine(tiny_model, root, role="kv_producer")
    request = engine.request("a", 2 * CHUNK)
    put(root, key_of(request, PER_CHUNK))
    _, metadata = engine.step()
    assert metadata.loads == []
    assert metadata.stores != []


def test_every_rank_must_have_a_chunk(tiny_model, root):
    engine = Engine(tiny_model, root, ranks=2)
    request = engine.request("a", 2 * CHUNK + 1)
    put(root, key_of(request, PER_CHUNK), key_of(request, 2 * PER_CHUNK), ranks=2)
    chunk_file(root, key_of(request, 2 * PER_CHUNK), rank=1).unlink()
    engine.step()
    assert request.num_computed_tokens == CHUNK


@pytest.mark.parametrize("granted", [CHUNK + BLOCK, CHUNK + BLOCK - 5, CHUNK, BLOCK])
def test_a_load_of_fewer_tokens_than_promised_ends_inside_a_chunk(
    engine, root, granted, monkeypatch
):
    request = engine.request("a", 2 * CHUNK + 5)
    put(root, *(key_of(request, (i + 1) * PER_CHUNK) for i in range(2)))
    granting(engine, granted, monkeypatch)
    _, metadata = engine.step()
    (load,) = metadata.loads
    blocks = engine.scheduler.kv_cache_manager.get_block_ids("a")[0]
    assert request.num_computed_tokens == granted
    assert loaded_blocks(load) == blocks[: -(-granted // BLOCK)]
    assert all(chunk.block_count == PER_CHUNK for chunk in load.chunks)
    engine.run()
    assert engine.counted == {"tokens_loaded": len(loaded_blocks(load)) * BLOCK}
    engine.assert_at_rest()


@pytest.mark.parametrize("promised", [True, False])
def test_a_load_of_more_tokens_than_promised_is_computed(
    engine, root, promised, monkeypatch, lines
):
    engine.request("warm", BLOCK + 1)
    engine.run()
    request = engine.request("a", 2 * CHUNK + 5)
    if promised:
        put(root, key_of(request, PER_CHUNK))
    granting(engine, 2 * CHUNK - BLOCK, monkeypatch)
    _, metadata = engine.step()
    blocks = engine.scheduler.kv_cache_manager.get_block_ids("a")[0]
    assert metadata.loads[0].refused == blocks[1 : 2 * PER_CHUNK]
    engine.run()
    assert request.is_finished()
    assert engine.counted["tokens_failed"] == 2 * CHUNK - BLOCK
    assert [line for line in lines() if "not promised" in line]
    engine.assert_at_rest()


def test_after_a_reset_nothing_is_loaded_or_stored(engine, root, lines):
    request = engine.request("a", 2 * CHUNK)
    put(root, key_of(request, PER_CHUNK))
    engine.abort(request)
    engine.run()
    for _ in range(2):
        assert engine.scheduler.reset_prefix_cache(reset_connector=True)
    engine.request("b", 2 * CHUNK)
    assert not [metadata for metadata in engine.run() if metadata.loads or metadata.stores]
    assert len([line for line in lines() if "started again" in line]) == 1
    engine.assert_at_rest()


def test_jobs_that_a_reset_finds_in_flight_end_and_let_go(engine, root):
    request = engine.request("a", 2 * CHUNK)
    put(root, key_of(request, PER_CHUNK))
    engine.request("b", [9] * (CHUNK + 1))
    engine.worker.hold_loads = engine.worker.hold_stores = True
    _, metadata = engine.step()
    assert metadata.loads
    assert metadata.stores
    assert not engine.connector.reset_cache(), "a load is in flight"
    engine.worker.hold_loads = engine.worker.hold_stores = False
    assert not [metadata for metadata in engine.run() if metadata.loads or metadata.stores]
    assert engine.connector.reset_cache()
    engine.assert_at_rest()
