"""Models with several KV cache groups: what is stored, found and loaded of each.

``window(64)`` needs two blocks of 32 tokens behind any prefix, and ``STATE`` the last one; a chunk
has four.
"""

import random
import time

import pytest
from scheduler_harness import (
    BLOCK,
    CHUNK,
    FULL,
    PER_CHUNK,
    STATE,
    Engine,
    chunk_file,
    key_of,
    put,
    window,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from worker_harness import LAYERS, SPEC, RealWorker, checked_prompt, files

from lmkv.vllm.pace import Decision, Verdict

WINDOW_BLOCKS = 2
GEMMA = [window(64), FULL]  # as vLLM orders them: by the first layer


@pytest.fixture
def make(tiny_model, root):
    def make(groups=GEMMA, **options):
        return Engine(tiny_model, root, groups=groups, **options)

    return make


def key(engine, group, request, blocks):
    """The key of that group's file of the chunk that ends after ``blocks`` blocks."""
    (found,) = (one for one in engine.side._groups if one.index == group)
    return found.key(key_of(request, blocks))


def block_ids(engine, name):
    return engine.scheduler.kv_cache_manager.get_block_ids(name)


def loads(steps):
    return [load for metadata in steps for load in metadata.loads]


def stores(steps):
    return [store for metadata in steps for store in metadata.stores]


def loaded(engine, name, tokens):
    """What is loaded for a prompt: ``{(group, blocks up to its end): (first, blocks)}``, where
    ``first`` is counted from the prompt's first block. It is computed to its end.
    """
    request = engine.request(name, tokens)
    _, metadata = engine.step()
    found = {
        key(engine, group.index, request, end): (group.index, end)
        for group in engine.side._groups
        for end in range(1, len(request.block_hashes) + 1)
    }
    ids = block_ids(engine, name) if metadata.loads else ()
    got = {}
    for load in metadata.loads:
        for chunk in load.chunks:
            group, end = found[chunk.key]
            first = chunk.token_begin // BLOCK + chunk.first_block
            assert chunk.token_begin // BLOCK + chunk.block_count == end
            assert chunk.block_ids == list(ids[group][first:end])
            assert 0 not in chunk.block_ids, "the null block is nobody's"
            got[group, end] = first, end - first
    engine.run()
    engine.assert_at_rest()
    return got


def test_each_group_has_a_file_of_each_chunk_and_a_windows_holds_what_it_needs(make, root):
    engine = make()
    request = engine.request("a", 2 * CHUNK + 1, max_tokens=2)
    _, metadata = engine.step()
    window_ids, full_ids = block_ids(engine, "a")
    assert [(store.key, store.token_begin, len(store.block_ids)) for store in metadata.stores] == [
        (key_of(request, PER_CHUNK), 0, PER_CHUNK),
        (key(engine, 0, request, PER_CHUNK), CHUNK - 2 * BLOCK, WINDOW_BLOCKS),
        (key_of(request, 2 * PER_CHUNK), CHUNK, PER_CHUNK),
        (key(engine, 0, request, 2 * PER_CHUNK), 2 * CHUNK - 2 * BLOCK, WINDOW_BLOCKS),
    ]
    assert len({store.key for store in metadata.stores}) == 4
    assert metadata.stores[2].block_ids == full_ids[PER_CHUNK : 2 * PER_CHUNK]
    assert metadata.stores[3].block_ids == window_ids[2 * PER_CHUNK - 2 : 2 * PER_CHUNK]
    engine.run()
    engine.assert_at_rest()


def test_a_prefix_is_loaded_with_its_last_window_only(make, root):
    first = make()
    request = first.request("a", 3 * CHUNK + 1)
    first.run()
    # Of windows that lie before it nothing need be there.
    chunk_file(root, key(first, 0, request, PER_CHUNK)).unlink()
    chunk_file(root, key(first, 0, request, 2 * PER_CHUNK)).unlink()
    second = make()
    assert loaded(second, "a", 3 * CHUNK + 1) == {
        (1, PER_CHUNK): (0, PER_CHUNK),
        (1, 2 * PER_CHUNK): (PER_CHUNK, PER_CHUNK),
        (1, 3 * PER_CHUNK): (2 * PER_CHUNK, PER_CHUNK),
        (0, 3 * PER_CHUNK): (3 * PER_CHUNK - WINDOW_BLOCKS, WINDOW_BLOCKS),
    }
    assert second.counted["tokens_loaded"] == 3 * CHUNK


def test_what_was_loaded_is_in_vllms_own_cache_and_not_stored_again(make):
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    second.request("a", 3 * CHUNK + 1)
    assert not stores(second.run())
    second.request("b", 3 * CHUNK + 1)
    output, metadata = second.step()
    assert output.num_scheduled_tokens == {"b": 1}
    assert not metadata.loads


@pytest.mark.parametrize(("missing", "left"), [([3], 2), ([2, 3], 1), ([1, 2, 3], 0)])
def test_a_prefix_ends_where_the_last_window_is_there(make, root, missing, left):
    first = make()
    request = first.request("a", 3 * CHUNK + 1)
    first.run()
    for chunk in missing:
        chunk_file(root, key(first, 0, request, chunk * PER_CHUNK)).unlink()
    second = make()
    got = loaded(second, "a", 3 * CHUNK + 1)
    assert second.counted.get("tokens_loaded", 0) == left * CHUNK
    assert {end for _, end in got} == {(chunk + 1) * PER_CHUNK for chunk in range(left)}
    # What was missing is stored again, and found by the next.
    assert all(chunk_file(root, key(first, 0, request, c * PER_CHUNK)).exists() for c in missing)


def test_without_the_full_attention_a_window_is_of_no_use(make, root):
    first = make()
    request = first.request("a", 3 * CHUNK + 1)
    first.run()
    chunk_file(root, key_of(request, 2 * PER_CHUNK)).unlink()
    second = make()
    assert set(loaded(second, "a", 3 * CHUNK + 1)) == {(0, PER_CHUNK), (1, PER_CHUNK)}


def test_blocks_that_are_no_part_of_a_chunk_are_a_reason_and_no_error(make, lines):
    """VLLM may have chosen their size; with one group the user has."""
    engine = make(extra={"chunk_tokens": CHUNK + 16})
    engine.request("a", 3 * CHUNK)
    assert not stores(engine.run())
    assert [line for line in lines() if f"blocks have {BLOCK} tokens" in line and "128" in line]


def test_every_group_of_full_attention_must_be_there(make, root):
    groups = [FULL, FULL, window(64)]
    first = make(groups)
    request = first.request("a", 3 * CHUNK + 1)
    first.run()
    chunk_file(root, key(first, 1, request, 2 * PER_CHUNK)).unlink()
    second = make(groups)
    got = loaded(second, "a", 3 * CHUNK + 1)
    assert set(got) == {(0, PER_CHUNK), (1, PER_CHUNK), (2, PER_CHUNK)}


@pytest.mark.parametrize(
    ("tokens", "first"),
    [(CHUNK, 2), (CHUNK + 1, 2), (CHUNK + 2, 1), (2 * CHUNK + 1, 1), (2 * CHUNK + 2, 0)],
)
def test_a_window_of_several_chunks_needs_those_that_it_reaches_into(make, root, tokens, first):
    """``first``: the chunk, of three, that it begins in: 3 * CHUNK + 1 - tokens is its token."""
    groups = [window(tokens), FULL]
    engine = make(groups)
    request = engine.request("a", 3 * CHUNK + 1)
    engine.run()
    for chunk in range(first):
        chunk_file(root, key(engine, 0, request, (chunk + 1) * PER_CHUNK)).unlink()
    second = make(groups)
    got = loaded(second, "a", 3 * CHUNK + 1)
    windows = {end: blocks for (group, end), blocks in got.items() if group == 0}
    begin = (3 * CHUNK + 1 - tokens) // BLOCK
    assert min(first for first, _ in windows.values()) == begin
    assert sum(blocks for _, blocks in windows.values()) == 3 * PER_CHUNK - begin
    # The first of them is needed indeed.
    chunk_file(root, key(engine, 0, request, (first + 1) * PER_CHUNK)).unlink()
    third = make(groups)
    loaded(third, "a", 3 * CHUNK + 1)
    assert third.counted.get("tokens_loaded", 0) < 3 * CHUNK


@pytest.mark.parametrize("budget", [BLOCK, 48, CHUNK - 1, CHUNK + 16])
@pytest.mark.parametrize("tokens", [33, 64, CHUNK, 3 * CHUNK])
def test_windows_are_stored_however_a_prompt_is_cut_into_steps(make, budget, tokens):
    groups = [window(tokens), FULL]
    first = make(groups, budget=budget)
    first.request("a", 3 * CHUNK + 40)
    first.run()
    first.assert_at_rest()
    second = make(groups)
    loaded(second, "a", 3 * CHUNK + 40)
    assert second.counted["tokens_loaded"] == 3 * CHUNK + BLOCK, "its tail, too"


def test_what_a_window_leaves_behind_is_held_until_it_is_gathered(make):
    engine = make(budget=CHUNK)
    engine.worker.hold_stores = True
    engine.request("a", 3 * CHUNK + 1)
    _, metadata = engine.step()
    window_store = metadata.stores[1]
    assert len(window_store.block_ids) == WINDOW_BLOCKS
    engine.step()
    engine.step()
    assert not set(block_ids(engine, "a")[0]) & set(window_store.block_ids)
    assert all(engine.pool.blocks[block].ref_cnt == 1 for block in window_store.block_ids)
    engine.worker.hold_stores = False
    engine.run()
    engine.assert_at_rest()


def test_a_local_hit_is_not_loaded_again(make):
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    second.request("short", CHUNK + 1)
    second.run()
    assert loaded(second, "a", 3 * CHUNK + 1) == {
        (1, 2 * PER_CHUNK): (PER_CHUNK, PER_CHUNK),
        (1, 3 * PER_CHUNK): (2 * PER_CHUNK, PER_CHUNK),
        (0, 3 * PER_CHUNK): (3 * PER_CHUNK - WINDOW_BLOCKS, WINDOW_BLOCKS),
    }


def test_a_tail_has_its_window(make):
    first = make()
    first.request("a", CHUNK + BLOCK + 1)
    first.run()
    second = make()
    assert loaded(second, "a", CHUNK + BLOCK + 1) == {
        (1, PER_CHUNK): (0, PER_CHUNK),
        (1, PER_CHUNK + 1): (PER_CHUNK, 1),
        (0, PER_CHUNK): (PER_CHUNK - 1, 1),
        (0, PER_CHUNK + 1): (PER_CHUNK, 1),
    }


@pytest.mark.parametrize("failed", [0, 3])
def test_a_load_that_is_not_whole_is_computed_and_not_tried_again(make, failed):
    """VLLM discards all of it. What failed is taken for absent, so that it ends."""
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    second.worker.fail_chunks = {failed}
    request = second.request("a", 3 * CHUNK + 1)
    seen = loads(second.run())
    assert request.is_finished()
    assert second.counted["tokens_failed"] >= 3 * CHUNK
    if failed == 0:  # the head: nothing can be loaded without it
        assert len(seen) == 1
        assert "tokens_loaded" not in second.counted
    second.assert_at_rest()


def test_after_a_window_failed_a_shorter_prefix_is_loaded(make):
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    second.worker.fail_chunks = {3}  # three chunks of full attention, and then the window
    request = second.request("a", 3 * CHUNK + 1)
    second.step()
    second.step()
    second.worker.fail_chunks = set()
    second.run()
    assert request.is_finished()
    assert second.counted["tokens_failed"] == 3 * CHUNK
    assert second.counted["tokens_loaded"] == 2 * CHUNK
    second.assert_at_rest()


def test_where_failures_fail_requests_so_does_a_load_that_is_not_whole(make):
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make(policy="fail")
    second.worker.fail_chunks = {0}
    request = second.request("a", 3 * CHUNK + 1)
    second.run()
    assert request.get_finished_reason().name == "ERROR"
    second.assert_at_rest()


def test_a_request_that_ends_while_it_loads_leaves_nothing(make):
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    second.worker.hold_loads = True
    request = second.request("a", 3 * CHUNK + 1)
    second.step()
    second.abort(request)
    second.run()
    second.assert_at_rest()


def test_other_tokens_than_promised_are_computed(make, monkeypatch):
    """For fewer tokens another window is wanted, which may not be there."""
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    ask = second.connector.get_num_new_matched_tokens
    answers = []

    def fewer(request, computed):
        tokens, is_async = ask(request, computed)
        answers.append(tokens)
        return (tokens - BLOCK if tokens else tokens), is_async

    monkeypatch.setattr(second.connector, "get_num_new_matched_tokens", fewer)
    request = second.request("a", 3 * CHUNK + 1)
    seen = loads(second.run())
    assert request.is_finished()
    assert [load.chunks for load in seen] == [[]]
    assert answers[0] == 3 * CHUNK
    second.assert_at_rest()


@pytest.mark.parametrize(("most", "left"), [(3 * CHUNK, 3), (3 * CHUNK - 1, 1), (CHUNK - 1, 0)])
def test_a_limit_ends_where_a_window_is_there(make, root, most, left):
    first = make()
    request = first.request("a", 3 * CHUNK + 1)
    first.run()
    chunk_file(root, key(first, 0, request, 2 * PER_CHUNK)).unlink()
    second = make()
    limit = {"kv_transfer_params": {"lmkv": {"max_load_tokens": most}}}
    second.request("a", 3 * CHUNK + 1, extra_args=limit)
    second.run()
    assert second.counted.get("tokens_loaded", 0) == left * CHUNK
    second.assert_at_rest()


def test_a_decision_to_load_less_ends_where_a_window_is_there(make, root, monkeypatch):
    first = make()
    request = first.request("a", 3 * CHUNK + 1)
    first.run()
    chunk_file(root, key(first, 0, request, 2 * PER_CHUNK)).unlink()
    second = make()
    two = Decision(2, Verdict.CUT, within=60.0, disk_tokens=2 * CHUNK)
    monkeypatch.setattr(second.side._pace, "decide", lambda *_, **__: two)
    second.request("a", 3 * CHUNK + 1)
    _, metadata = second.step()
    assert [len(load.chunks) for load in metadata.loads] == [2]
    assert second.side._loads.tokens_under_way == CHUNK
    second.run()
    assert second.counted["tokens_loaded"] == CHUNK
    assert second.side._loads.tokens_under_way == 0
    second.assert_at_rest()


def test_two_requests_for_one_prefix_load_it_once(make):
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    second = make()
    second.request("a", 3 * CHUNK + 1)
    second.request("b", 3 * CHUNK + 1)
    assert len(loads(second.run())) == 1
    second.assert_at_rest()


def test_a_chunk_that_was_evicted_of_one_group_is_stored_again(make, root):
    engine = make()
    request = engine.request("a", 2 * CHUNK + 1)
    engine.run()
    gone = chunk_file(root, key(engine, 0, request, 2 * PER_CHUNK))
    gone.unlink()
    engine.scheduler.reset_prefix_cache()
    engine.side._lookup.forget()
    engine.request("b", 2 * CHUNK + 1)
    engine.run()
    assert gone.exists()


def test_in_a_window_uses_are_said_of_what_is_used(make):
    """A request that stores nothing still says what it used in vLLM's own cache."""
    engine = make()
    request = engine.request("a", 3 * CHUNK + 1)
    engine.run()
    quiet = {"kv_transfer_params": {"lmkv": {"store": False}}}
    engine.side._stores._known.clear()
    engine.request("b", 3 * CHUNK + 1, extra_args=quiet)
    used = [chunk for step in engine.run() for use in step.uses for chunk in use.chunks]
    assert used == [
        (key_of(request, PER_CHUNK), 0),
        (key_of(request, 2 * PER_CHUNK), CHUNK),
        (key_of(request, 3 * PER_CHUNK), 2 * CHUNK),
        (key(engine, 0, request, 3 * PER_CHUNK), 3 * CHUNK - WINDOW_BLOCKS * BLOCK),
    ]


def test_a_long_prefix_with_few_windows_is_found_quickly(make, root):
    """All windows but the first are gone: the search must not take a square of the chunks."""
    engine = make(blocks=2000)
    request = engine.request("a", 60 * CHUNK + 1)
    put(root, *(key_of(request, end) for end in range(PER_CHUNK, 60 * PER_CHUNK + 1, PER_CHUNK)))
    put(root, key(engine, 0, request, PER_CHUNK))
    asked = []
    ask = engine.side._lookup.present
    engine.side._lookup.present = lambda keys: asked.append(len(keys)) or ask(keys)
    assert engine.side.matched_tokens(request, 0) == CHUNK
    assert asked[-2:] == [1, 59], "none is asked for twice: that it is absent is told once"


@pytest.mark.parametrize("gone", [(0, PER_CHUNK), (0, 2 * PER_CHUNK), (1, 2 * PER_CHUNK)])
def test_a_file_that_is_missing_holds_up_no_request_whatever_the_filesystem_takes(
    make, root, monkeypatch, gone
):
    """That something is absent is told once, and no answer comes in the step that asks."""
    request = make().request("a", 3 * CHUNK + 1)
    first = make()
    first.request("a", 3 * CHUNK + 1)
    first.run()
    group, end = gone
    chunk_file(root, key(first, group, request, end)).unlink()
    engine = make()
    monkeypatch.setattr("lmkv.vllm.lookup.WAIT_SECONDS", 0.0)
    request = engine.request("b", 3 * CHUNK + 1)
    deadline = time.monotonic() + 20
    while not request.is_finished():
        engine.step()
        time.sleep(0.002)
        assert time.monotonic() < deadline, "it waits for ever"
    engine.run()
    engine.assert_at_rest()


@pytest.mark.parametrize("missing", range(8))
def test_the_search_finds_what_trying_all_lengths_finds(make, root, missing):
    engine = make(blocks=2000)
    request = engine.request("a", 12 * CHUNK + 1)
    ends = range(PER_CHUNK, 12 * PER_CHUNK + 1, PER_CHUNK)
    source = random.Random(missing)
    for end in ends:
        for group in (0, 1):
            if group == 1 or source.random() > missing / 8:
                put(root, key(engine, group, request, end))
    # Two blocks of the window lie in the last chunk of any prefix: that one file must be there.
    there = [end for end in ends if chunk_file(root, key(engine, 0, request, end)).exists()]
    assert engine.side.matched_tokens(request, 0) == (there[-1] if there else 0) * BLOCK


def test_a_file_that_failed_on_its_way_to_the_directory_is_not_promised_again(make, root):
    engine = make()
    request = engine.request("a", 2 * CHUNK + 1)
    put(root, *(key_of(request, end) for end in (PER_CHUNK, 2 * PER_CHUNK)))
    windows = [key(engine, 0, request, end) for end in (PER_CHUNK, 2 * PER_CHUNK)]
    engine.side._stores._in_memory.update(windows)
    assert engine.side.matched_tokens(request, 0) == 2 * CHUNK
    engine.side._lookup.mark_absent(windows[1:])
    engine.side._waiting._found.clear()
    assert engine.side.matched_tokens(request, 0) == CHUNK


def stored_ends(engine):
    """Run a prompt; where the chunks end that are stored, in blocks: ``{group: ends}``."""
    request = engine.request("a", 3 * CHUNK + 40)
    keys = {store.key for store in stores(engine.run())}
    engine.assert_at_rest()
    return {
        group.index: [
            end
            for end in range(1, len(request.block_hashes) + 1)
            if key(engine, group.index, request, end) in keys
        ]
        for group in engine.side._groups
    }


HYBRID = [STATE, FULL]


@pytest.mark.parametrize(("budget", "states"), [(8192, [13]), (2 * CHUNK, [8, 13]), (96, [12, 13])])
def test_a_state_is_stored_where_a_step_ends_with_a_chunk(make, budget, states):
    """VLLM ends steps at blocks, and the last but one before the prompt's last token."""
    engine = make(HYBRID, budget=budget)
    assert stored_ends(engine) == {1: [4, 8, 12, 13], 0: states}
    second = make(HYBRID)
    assert loaded(second, "a", 3 * CHUNK + 40) == {
        (1, 4): (0, 4),
        (1, 8): (4, 4),
        (1, 12): (8, 4),
        (1, 13): (12, 1),
        (0, 13): (12, 1),
    }
    assert second.counted["tokens_loaded"] == 3 * CHUNK + BLOCK


@pytest.mark.parametrize(("budget", "tokens"), [(8192, 0), (CHUNK, 2 * CHUNK)])
def test_another_prompt_is_loaded_as_far_as_there_is_a_state(make, budget, tokens):
    stored_ends(make(HYBRID, budget=budget))
    second = make(HYBRID)
    second.request("b", [*range(2 * CHUNK), *range(100)])
    second.run()
    assert second.counted.get("tokens_loaded", 0) == tokens
    second.assert_at_rest()


def test_a_state_is_held_until_it_is_gathered(make):
    engine = make(HYBRID, budget=CHUNK)
    engine.worker.hold_stores = True
    engine.request("a", 3 * CHUNK + 1)
    _, metadata = engine.step()
    (state,) = [store for store in metadata.stores if len(store.block_ids) == 1]
    for _ in range(3):
        engine.step()
    assert [engine.pool.blocks[block].ref_cnt for block in state.block_ids] == [1]
    engine.worker.hold_stores = False
    engine.run()
    engine.assert_at_rest()


def test_a_state_is_stored_only_where_vllm_hands_it_out(make, monkeypatch):
    """A block in the table may hold the state of another token: of a checkpoint within, say."""
    engine = make(HYBRID, budget=CHUNK)
    plan = engine.side._stores.plan
    monkeypatch.setattr(engine.side._stores, "plan", lambda scheduled, _: plan(scheduled, {}))
    assert stored_ends(engine) == {1: [4, 8, 12, 13], 0: []}


def test_a_request_that_stores_nothing_stores_no_state(make):
    engine = make(HYBRID, budget=CHUNK)
    quiet = {"kv_transfer_params": {"lmkv": {"store": False}}}
    engine.request("a", 3 * CHUNK + 1, extra_args=quiet)
    assert not stores(engine.run())


def test_generated_states_are_stored_where_the_generated_is(make):
    engine = make(HYBRID, extra={"store_generated": True})
    request = engine.request("a", CHUNK - 3, max_tokens=CHUNK)
    keys = {store.key for store in stores(engine.run(limit=200))}
    assert {key(engine, 0, request, PER_CHUNK), key_of(request, PER_CHUNK)} <= keys
    engine = make(HYBRID)
    engine.request("b", [9] * (CHUNK - 3), max_tokens=CHUNK)
    assert len({store.key for store in stores(engine.run(limit=200))}) == 2, "its tail's"


def test_without_tails_states_are_stored_with_whole_chunks_only(make):
    engine = make(HYBRID, budget=CHUNK, extra={"store_tail": False})
    assert stored_ends(engine) == {1: [4, 8, 12], 0: [4, 8, 12]}


@pytest.fixture
def make_real(tiny_model, root):
    """Engines with real workers: bytes go from one KV cache to another."""
    workers = []

    def make(groups=GEMMA, layout=KVCacheLayout.LBHNC, **options):
        options["extra"] = {"host_memory": "64MiB", **options.get("extra", {})}
        engine = Engine(tiny_model, root, hello=False, groups=groups, **options)
        workers.append(RealWorker(engine, layout))
        engine.greet(workers[-1].connector.get_handshake_metadata())
        return engine

    yield make
    for worker in workers:
        worker.connector.shutdown()


PROMPT = 3 * CHUNK + 2 * BLOCK + 9


@pytest.mark.parametrize("budget", [8192, CHUNK + 16, 48])
@pytest.mark.parametrize(
    "groups",
    [GEMMA, [window(CHUNK + 40), window(33), FULL], HYBRID, [window(64), FULL, STATE]],
    ids=["a window", "two windows", "a state", "a window and a state"],
)
def test_a_second_engine_gets_the_first_ones_bytes_of_all_groups(make_real, groups, budget):
    first = make_real(groups, budget=budget)
    checked_prompt(first, "a", PROMPT)
    if STATE not in groups:
        assert first.worker.totals["chunks_stored"] == 4 * len(groups)
    second = make_real(groups)
    checked_prompt(second, "b", PROMPT)
    assert second.counted["tokens_loaded"] == 3 * CHUNK + 2 * BLOCK
    assert "tokens_failed" not in second.counted
    assert "chunks_stored" not in second.worker.totals


@pytest.mark.parametrize("groups", [GEMMA, HYBRID, [window(64), STATE, FULL]])
@pytest.mark.parametrize("layout", [KVCacheLayout.LBHNC, KVCacheLayout.BLHNC])
def test_a_partial_local_hit_is_completed_from_the_directory(make_real, groups, layout):
    first = make_real(groups, layout, budget=CHUNK)
    checked_prompt(first, "a", PROMPT)
    second = make_real(groups, budget=CHUNK)
    checked_prompt(second, "warm", [*range(CHUNK + 2), *range(40)])
    before = second.counted["tokens_loaded"]
    assert before == CHUNK
    checked_prompt(second, "b", PROMPT)
    assert second.counted["tokens_loaded"] - before == 2 * CHUNK + 2 * BLOCK


def test_engines_whose_groups_differ_do_not_share(make_real, root):
    checked_prompt(make_real([window(64), FULL]), "a", PROMPT)
    for others in ([window(96), FULL], [FULL, window(64)], [STATE, FULL], [FULL]):
        second = make_real(others)
        checked_prompt(second, "b", PROMPT)
        assert "chunks_loaded" not in second.worker.totals
    assert len(list(root.glob("v1/*/meta.json"))) == 5


def test_engines_with_pages_in_another_order_do_not_share(make_real):
    """A state's page has no order: it is the full attention's that counts."""
    heads, tokens = KVCacheLayout.LBHNC, KVCacheLayout.LBNHC
    checked_prompt(make_real(HYBRID, heads), "a", PROMPT)
    second = make_real(HYBRID, tokens)
    checked_prompt(second, "b", PROMPT)
    assert "chunks_loaded" not in second.worker.totals


def test_a_bad_file_of_a_window_is_removed_and_the_prompt_computed(make_real, root):
    first = make_real()
    request = checked_prompt(first, "a", PROMPT)
    name = key(first, 0, request, len(request.block_hashes)).hex()
    (file,) = root.glob(f"v1/*/r0/*/{name}.kv")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    second = make_real()
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_bad_removed"] == 1
    assert second.counted["tokens_failed"] == 3 * CHUNK + 2 * BLOCK
    assert second.counted["tokens_loaded"] == 3 * CHUNK, "what is before it is good"
    assert file.read_bytes() != bytes(data), "it is stored again"


def test_windows_take_no_more_of_the_disk_than_they_need(make_real, root):
    checked_prompt(make_real(), "a", 3 * CHUNK + 1)
    page = 4096
    block = SPEC.page_size_bytes * len(LAYERS)
    sizes = sorted(file.stat().st_size for file in files(root))
    assert sizes == 3 * [page + WINDOW_BLOCKS * block] + 3 * [page + PER_CHUNK * block]
