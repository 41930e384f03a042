"""What is stored and when, and how long blocks are held, through vLLM's real scheduler."""

import time

import pytest
from scheduler_harness import BLOCK, CHUNK, PER_CHUNK, Engine, chunk_file, key_of, put
from vllm.config import VllmConfig
from vllm.v1.request import RequestStatus

from lmkv._C import USE_TICK_SECONDS
from lmkv.vllm.events import Events
from lmkv.vllm.groups import Group, Groups
from lmkv.vllm.known import KNOWN_SECONDS
from lmkv.vllm.metadata import StepReport
from lmkv.vllm.stores import StorePlanner


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root)


def stores_of(steps):
    return [store for metadata in steps for store in metadata.stores]


def test_all_chunks_of_a_prompt_and_its_tail_are_stored_by_the_step_that_fills_them(engine):
    request = engine.request("a", 2 * CHUNK + 2 * BLOCK + 7)
    _, metadata = engine.step()
    assert [(store.key, store.token_begin, len(store.block_ids)) for store in metadata.stores] == [
        (key_of(request, PER_CHUNK), 0, PER_CHUNK),
        (key_of(request, 2 * PER_CHUNK), CHUNK, PER_CHUNK),
        (key_of(request, 2 * PER_CHUNK + 2), 2 * CHUNK, 2),
    ]
    engine.run()
    engine.assert_at_rest()


@pytest.mark.parametrize("tokens", [1, BLOCK, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_the_same_prompt_again_loads_all_that_it_may(engine, tokens):
    engine.request("a", tokens)
    engine.run()
    engine.scheduler.reset_prefix_cache()
    engine.request("b", tokens)
    loads = [load for metadata in engine.run() for load in metadata.loads]
    blocks = sum(len(chunk.block_ids) for load in loads for chunk in load.chunks)
    assert blocks == (tokens - 1) // BLOCK
    engine.assert_at_rest()


def test_a_chunked_prefill_stores_chunk_by_chunk(tiny_model, root):
    engine = Engine(tiny_model, root, budget=CHUNK + 40)
    engine.request("a", 3 * CHUNK + 40)
    begins = []
    for _ in range(3):
        _, metadata = engine.step()
        begins.append([store.token_begin for store in metadata.stores])
    assert begins == [[0], [CHUNK], [2 * CHUNK, 3 * CHUNK]]
    engine.run()
    engine.assert_at_rest()


def test_nothing_is_stored_twice(engine):
    engine.request("a", 3 * CHUNK + 1)
    assert len(stores_of(engine.run())) == 3
    engine.request("b", 3 * CHUNK + 1)
    engine.scheduler.reset_prefix_cache()
    engine.request("c", 3 * CHUNK + 1)
    assert stores_of(engine.run()) == []


def test_two_requests_of_one_step_store_a_shared_chunk_once(engine):
    engine.request("a", CHUNK + 1)
    engine.request("b", CHUNK + 9)
    assert len(stores_of([engine.step()[1]])) == 1


def test_generated_tokens_are_stored_only_when_asked_for(tiny_model, root):
    for wanted in (False, True):
        engine = Engine(tiny_model, root, extra={"store_generated": wanted, "store_tail": False})
        engine.request("a", CHUNK - 10, max_tokens=CHUNK + 20)
        begins = [store.token_begin for store in stores_of(engine.run(limit=300))]
        assert begins == ([0, CHUNK] if wanted else [])
        engine.assert_at_rest()


def test_a_generated_chunk_is_stored_in_the_step_that_fills_it(tiny_model, root, monkeypatch):
    looks = []
    advance = StorePlanner._advance
    monkeypatch.setattr(StorePlanner, "_advance", lambda *a: (looks.append(1), advance(*a))[1])
    engine = Engine(tiny_model, root, extra={"store_generated": True, "store_tail": False})
    lengths = [CHUNK - 30, CHUNK + 1, 2 * CHUNK - 3]
    requests = {
        key: engine.request(f"r{key}", [key] * length, max_tokens=3 * CHUNK)
        for key, length in enumerate(lengths)
    }
    steps, found = 0, []
    computed = dict.fromkeys(requests, 0)
    while engine.scheduler.has_requests():
        stores = engine.step()[1].stores
        steps += 1
        for key, request in requests.items():
            ends = range(CHUNK, request.num_computed_tokens + 1, CHUNK)
            full = [key_of(request, end // BLOCK) for end in ends if end > computed[key]]
            assert [store.key for store in stores if store.key in full] == full
            found += full
            computed[key] = request.num_computed_tokens
    assert len(set(found)) == 3 + 4 + 4
    assert len(looks) < steps, "each of three was looked at in less than a third of all steps"
    engine.assert_at_rest()


def test_what_a_preempted_request_computes_again_is_stored_in_those_steps(tiny_model, root):
    extra = {"store_generated": True, "store_tail": False}
    engine = Engine(tiny_model, root, budget=2 * CHUNK, extra=extra)
    request = engine.request("a", CHUNK - 9, max_tokens=7 * CHUNK)
    while request.num_tokens < 5 * CHUNK + 2:
        engine.step()
    keys = [key_of(request, end) for end in range(PER_CHUNK, 5 * PER_CHUNK + 1, PER_CHUNK)]
    for key in keys:  # all were evicted
        chunk_file(root, key).unlink()
    engine.side._stores.doubt(keys)
    engine.side._lookup.forget()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    stored = []
    while len(stored) < 5:
        _, metadata = engine.step()
        stored += [store.key for store in metadata.stores]
        full = request.num_computed_tokens // CHUNK
        assert stored == keys[:full]
    engine.abort(request)
    engine.run()
    engine.assert_at_rest()


def test_steps_that_store_nothing_for_a_siblings_sake_make_no_chunk_late(
    tiny_model, root, monkeypatch
):
    extra = {"store_generated": True, "store_tail": False}
    engine = Engine(tiny_model, root, extra=extra)
    step, steps = engine.side.step, []

    def with_sibling(output):
        steps.append(output)
        output.has_sync_kv_loads = len(steps) % 3 != 0
        return step(output)

    monkeypatch.setattr(engine.side, "step", with_sibling)
    request = engine.request("a", CHUNK - 9, max_tokens=3 * CHUNK)
    late = []
    while engine.scheduler.has_requests():
        ends = [store.token_begin + CHUNK for store in engine.step()[1].stores]
        late += [request.num_computed_tokens - end for end in ends]
    assert len(late) == 3
    assert max(late) <= 2, "by the steps of the sibling's and no more"
    engine.assert_at_rest()


def test_generated_tokens_that_come_back_in_a_prompt_are_stored_then(engine):
    first = engine.request("a", CHUNK - 10, max_tokens=CHUNK)
    engine.run(limit=300)
    history = list(first.all_token_ids)
    second = engine.request("b", [*history, *range(400, 420)])
    output, metadata = engine.step()
    assert output.num_scheduled_tokens["b"] < CHUNK  # the rest was a local hit
    assert [store.key for store in metadata.stores] == [
        key_of(second, PER_CHUNK),
        key_of(second, len(second.block_hashes)),
    ]
    engine.run()
    engine.assert_at_rest()


def test_a_local_hit_that_is_on_disk_is_not_stored(engine, root):
    first = engine.request("a", 2 * CHUNK + 1)
    engine.worker.drop_stores = True
    engine.run()
    engine.worker.drop_stores = False
    put(root, key_of(first, PER_CHUNK))
    second = engine.request("b", 2 * CHUNK + 1)
    _, metadata = engine.step()
    assert [store.key for store in metadata.stores] == [key_of(second, 2 * PER_CHUNK)]


def test_what_vanished_from_the_directory_is_stored_again(engine, root):
    request = engine.request("a", 2 * CHUNK + 1)
    assert len(stores_of(engine.run())) == 2
    engine.scheduler.reset_prefix_cache()
    chunk_file(root, key_of(request, 2 * PER_CHUNK)).unlink()  # evicted by another engine
    engine.request("b", 2 * CHUNK + 1)
    assert [store.key for store in stores_of(engine.run())] == [key_of(request, 2 * PER_CHUNK)]


def test_a_head_evicted_under_a_local_hit_is_stored_again_when_a_minute_is_over(
    engine, root, monkeypatch
):
    now = 1000.0
    monkeypatch.setattr(engine.side._stores._known, "_clock", lambda: now)
    head = key_of(engine.request("a", 2 * CHUNK + 1), PER_CHUNK)
    assert len(stores_of(engine.run())) == 2
    chunk_file(root, head).unlink()  # evicted by another engine
    now += KNOWN_SECONDS - 1
    engine.request("b", 2 * CHUNK + 1)
    assert stores_of(engine.run()) == []
    now += 1
    engine.request("c", 2 * CHUNK + 1)
    assert [store.key for store in stores_of(engine.run())] == [head]
    engine.request("d", 2 * CHUNK + 1)
    assert stores_of(engine.run()) == []
    engine.assert_at_rest()


def test_blocks_are_held_until_they_are_gathered(engine):
    engine.worker.hold_stores = True
    request = engine.request("a", 2 * CHUNK + 1)
    engine.step()
    assert request.is_finished()
    assert engine.free_blocks == engine.pool.num_gpu_blocks - 1 - 2 * PER_CHUNK
    engine.step()
    engine.side._linger_until = 0.0
    assert engine.scheduler.has_requests(), "an idle engine must step on"
    assert engine.connector.has_pending_block_frees()
    engine.worker.hold_stores = False
    engine.run()
    engine.assert_at_rest()


def test_dropped_stores_release_their_blocks_and_are_tried_again(engine):
    engine.worker.drop_stores = True
    engine.request("a", 2 * CHUNK + 1)
    engine.run()
    engine.assert_at_rest()
    engine.worker.drop_stores = False
    engine.request("b", 2 * CHUNK + 1)
    assert len(stores_of(engine.run())) == 2
    engine.assert_at_rest()


def test_blocks_are_held_until_every_rank_gathered_them(tiny_model, root):
    engine = Engine(tiny_model, root, ranks=2)
    engine.worker.ranks = 1  # only one of them reports in this step
    engine.request("a", CHUNK + 1)
    engine.step()
    job = engine.worker.stores[0]
    engine.step()
    assert engine.side._stores.pinned_jobs == 1
    engine.worker.stores = [job]
    engine.step()
    engine.run()
    engine.assert_at_rest()


def test_freed_blocks_keep_the_head_of_a_prefix_longest(engine):
    request = engine.request("a", CHUNK + 1)
    engine.worker.hold_stores = True
    engine.step()
    blocks = [store.block_ids for store in engine.worker.stores]
    assert request.is_finished()
    engine.worker.hold_stores = False
    engine.run()
    queue = [block.block_id for block in engine.pool.free_block_queue.get_all_free_blocks()]
    assert [b for b in queue if b in blocks[0]] == blocks[0][::-1]


def test_a_preempted_request_is_resumed_and_its_blocks_are_not_reused_meanwhile(tiny_model, root):
    engine = Engine(tiny_model, root, blocks=16)
    engine.worker.hold_stores = True
    first = engine.request("first", [1] * (CHUNK + 60), max_tokens=2 * CHUNK)
    second = engine.request("second", [2] * (CHUNK + 60), max_tokens=2 * CHUNK)
    _, metadata = engine.step()
    pinned = {block for store in metadata.stores for block in store.block_ids}
    for _ in range(400):
        engine.step()
        if first.num_preemptions + second.num_preemptions:
            break
    assert second.status == RequestStatus.PREEMPTED
    for block in pinned:
        assert engine.pool.blocks[block].ref_cnt >= 1
    engine.worker.hold_stores = False
    engine.run(limit=900)
    assert first.is_finished()
    assert second.is_finished()
    engine.assert_at_rest()


def test_an_abort_after_a_store_was_planned_leaks_nothing(engine):
    engine.worker.hold_stores = True
    request = engine.request("a", 2 * CHUNK + 1, max_tokens=50)
    engine.step()
    engine.abort(request)
    engine.step()
    assert engine.side._stores.pinned_jobs == 2
    engine.worker.hold_stores = False
    engine.run()
    engine.assert_at_rest()


def test_loaded_chunks_are_not_stored(engine, root):
    request = engine.request("a", 3 * CHUNK + BLOCK + 3)
    put(root, *(key_of(request, n) for n in (PER_CHUNK, 2 * PER_CHUNK)))
    stores = stores_of(engine.run())
    assert [store.key for store in stores] == [
        key_of(request, 3 * PER_CHUNK),
        key_of(request, 3 * PER_CHUNK + 1),
    ]
    engine.assert_at_rest()


def test_a_consumer_stores_nothing(tiny_model, root):
    engine = Engine(tiny_model, root, role="kv_consumer")
    engine.request("a", 3 * CHUNK + 1)
    assert stores_of(engine.run()) == []
    engine.assert_at_rest()


def test_with_speculation_all_of_a_prompt_is_stored_at_once(tiny_model, root):
    engine = Engine(tiny_model, root)
    engine.side._stores._unverified_tokens = 1
    request = engine.request("a", CHUNK)
    _, metadata = engine.step()
    assert key_of(request, PER_CHUNK) in [store.key for store in metadata.stores]
    engine.run()
    engine.assert_at_rest()


@pytest.mark.parametrize("speculates", [False, True])
def test_with_speculation_the_last_generated_slot_is_not_trusted(tiny_model, root, speculates):
    engine = Engine(tiny_model, root, extra={"store_generated": True, "store_tail": False})
    engine.side._stores._unverified_tokens = int(speculates)
    engine.side._stores._most_tokens = 1 + 3 * speculates
    engine.request("a", CHUNK - 2, max_tokens=6)
    stored = [len(engine.step()[1].stores) for _ in range(5)]
    assert stored == ([0, 0, 0, 1, 0] if speculates else [0, 0, 1, 0, 0])
    engine.run()
    engine.assert_at_rest()


def test_the_planner_is_told_how_many_tokens_a_step_may_speculate_on(tiny_model, root, monkeypatch):
    monkeypatch.setattr(VllmConfig, "num_speculative_tokens", property(lambda _: 3))
    engine = Engine(tiny_model, root, extra={"store_generated": True, "store_tail": False})
    engine.request("a", CHUNK - 2, max_tokens=6)
    assert [len(engine.step()[1].stores) for _ in range(5)] == [0, 0, 0, 1, 0]
    assert engine.side._stores._most_tokens == 4
    engine.run()


def test_a_producer_notices_what_vanished_from_the_directory(tiny_model, root):
    engine = Engine(tiny_model, root, role="kv_producer")
    request = engine.request("a", 2 * CHUNK)
    assert len(stores_of(engine.run())) == 3
    engine.scheduler.reset_prefix_cache()
    chunk_file(root, key_of(request, 2 * PER_CHUNK)).unlink()  # evicted by another engine
    engine.request("b", 2 * CHUNK)
    assert [store.key for store in stores_of(engine.run())] == [key_of(request, 2 * PER_CHUNK)]
    engine.assert_at_rest()


def test_a_step_in_which_a_sibling_loads_synchronously_stores_nothing(engine, monkeypatch):
    step, sync = engine.side.step, [True, False]

    def with_sibling(output):
        output.has_sync_kv_loads = sync.pop(0) if sync else False
        return step(output)

    monkeypatch.setattr(engine.side, "step", with_sibling)
    engine.request("a", 2 * CHUNK + 1, max_tokens=4)
    assert engine.step()[1].stores == []
    assert len(engine.step()[1].stores) == 2
    engine.run()
    engine.assert_at_rest()


def test_an_idle_engine_lingers_half_a_second_for_the_disk(engine):
    engine.worker.hold_stores = True
    engine.request("a", CHUNK + 1)
    _, metadata = engine.step()
    (store,) = metadata.stores
    engine.side._stores.settle(StepReport(gathered={store.job: 1}))
    assert engine.side.has_pending_work()
    engine.side._linger_until -= 0.5
    assert not engine.side.has_pending_work()


def test_resetting_vllms_cache_while_stores_are_held_recovers(engine):
    engine.worker.hold_stores = True
    engine.request("a", 2 * CHUNK + 1)
    engine.step()
    assert not engine.scheduler.reset_prefix_cache()
    engine.worker.hold_stores = False
    engine.run()
    assert engine.scheduler.reset_prefix_cache()
    engine.assert_at_rest()


def test_a_request_whose_prompt_is_stored_is_not_looked_at_again(engine, monkeypatch):
    for name in "abcd":
        engine.request(name, [ord(name)] * (CHUNK + 1), max_tokens=100)
    engine.step()
    looked = []
    monkeypatch.setattr(engine.side._stores, "_advance", lambda *args: looked.append(args))
    engine.step()
    assert looked == []


def uses_of(steps):
    return [
        (use.used_at, chunk) for metadata in steps for use in metadata.uses for chunk in use.chunks
    ]


def test_chunks_of_a_request_carry_the_time_of_its_admission_in_whatever_step(tiny_model, root):
    engine = Engine(tiny_model, root, budget=CHUNK)
    engine.request("a", 3 * CHUNK + BLOCK + 1)
    before = time.time()
    first = engine.step()[1]
    after = time.time()
    stores = stores_of([first, *engine.run()])
    assert len(stores) == 4
    assert len({store.used_at for store in stores}) == 1
    assert before <= stores[0].used_at <= after


def test_what_a_request_finds_in_vllms_own_cache_is_used_before_what_it_stores_behind_it(engine):
    engine.request("a", 2 * CHUNK + 1)
    engine.run()
    longer = engine.request("b", 4 * CHUNK + 1)
    steps = engine.run()
    stores = stores_of(steps)
    assert [store.token_begin for store in stores] == [2 * CHUNK, 3 * CHUNK]
    assert uses_of(steps) == [
        (stores[0].used_at, (key_of(longer, PER_CHUNK), 0)),
        (stores[0].used_at, (key_of(longer, 2 * PER_CHUNK), CHUNK)),
    ]


def test_a_use_is_said_once_a_tick(engine, monkeypatch):
    now = [1e9]
    monkeypatch.setattr("lmkv.vllm.scheduler.time.time", lambda: now[0])
    engine.request("a", CHUNK + 1)
    engine.run()
    said = []
    for name, later in (("b", 0), ("c", USE_TICK_SECONDS - 1), ("d", 1), ("e", 0)):
        now[0] += later
        engine.request(name, CHUNK + 1)
        said.append(len(uses_of(engine.run())))
    assert said == [1, 0, 1, 0]


def test_a_chunk_used_while_it_is_being_stored_is_said_when_it_is_there(engine):
    engine.worker.hold_stores = True
    engine.request("a", CHUNK + 1)
    engine.step()
    engine.request("b", CHUNK + 1)
    engine.step()
    steps = [engine.step()[1] for _ in range(3)]
    assert uses_of(steps) == []
    engine.worker.hold_stores = False
    assert len(uses_of([engine.step()[1] for _ in range(3)])) == 1
    engine.run()
    engine.assert_at_rest()


def test_an_engine_that_only_loads_says_what_it_used_in_its_own_cache(
    tiny_model, root, monkeypatch
):
    monkeypatch.setattr("lmkv.vllm.scheduler.time.time", lambda: 1e9)
    engine = Engine(tiny_model, root, role="kv_consumer")
    request = engine.request("a", 2 * CHUNK + 1)
    assert uses_of(engine.run()) == []
    engine.request("b", 2 * CHUNK + 1)
    assert uses_of(engine.run()) == [
        (1e9, (key_of(request, PER_CHUNK), 0)),
        (1e9, (key_of(request, 2 * PER_CHUNK), CHUNK)),
    ]
    engine.request("c", 2 * CHUNK + 1)
    assert uses_of(engine.run()) == []


@pytest.mark.parametrize("lag", [1, 2, PER_CHUNK])
def test_blocks_whose_hashes_are_not_there_yet_are_not_stored(engine, lag):
    """VLLM 0.33 can make a block's hash cover tokens behind it, so that hashes lag behind."""
    request = engine.request("a", 2 * CHUNK + 1)
    keys = [key_of(request, PER_CHUNK), key_of(request, 2 * PER_CHUNK - lag)]
    del request.block_hashes[-lag:]
    pool = engine.scheduler.kv_cache_manager.block_pool
    blocks = pool.get_new_blocks(2 * PER_CHUNK + 1)
    planner = StorePlanner(
        pool,
        lambda _: (blocks,),
        Groups([Group(0, BLOCK, PER_CHUNK)]),
        block_tokens=BLOCK,
        blocks_per_chunk=PER_CHUNK,
        ranks=1,
        tails=True,
        generated=False,
        draft_tokens=0,
        events=Events(BLOCK, enabled=False),
    )
    planner.admit(request, time.time())
    stored = [store.key for store in planner.plan({"a": request.num_prompt_tokens})]
    assert stored == (keys if lag < PER_CHUNK else keys[:1])
