"""Both sides together with the real core: bytes go from one engine's KV cache to another's."""

import json
import os
import re
import time

import pytest
from scheduler_harness import BLOCK, CHUNK, PER_CHUNK, Engine, key_of, seconds_per_call
from vllm.v1.kv_cache_layout import KVCacheLayout
from worker_harness import LAYERS, RealWorker, checked_prompt, files, run

from lmkv import ConfigError
from lmkv.config import Config
from lmkv.vllm.metadata import StepMetadata
from lmkv.vllm.notices import closed_to_group, slow
from lmkv.vllm.worker import WorkerSide


@pytest.fixture
def make(tiny_model, root):
    workers = []

    def make(layout=KVCacheLayout.LBHNC, **options):
        options.setdefault("extra", {}).setdefault("host_memory", "64MiB")
        engine = Engine(tiny_model, root, hello=False, **options)
        workers.append(RealWorker(engine, layout))
        engine.greet(workers[-1].connector.get_handshake_metadata())
        return engine

    yield make
    for worker in workers:
        worker.connector.shutdown()


PROMPT = 3 * CHUNK + 2 * BLOCK + 9


def test_a_second_engine_gets_the_first_ones_bytes(make, root):
    first = make()
    checked_prompt(first, "a", PROMPT)
    assert first.worker.totals["chunks_stored"] == 4
    assert len(files(root)) == 4
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_loaded"] == 4
    assert "chunks_stored" not in second.worker.totals


def test_engines_with_other_layouts_of_the_same_pages_share(make):
    checked_prompt(make(KVCacheLayout.LBHNC), "a", PROMPT)
    second = make(KVCacheLayout.BLHNC)
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_loaded"] == 4


def test_engines_with_pages_in_another_order_do_not(make, root):
    checked_prompt(make(KVCacheLayout.LBHNC), "a", PROMPT)
    second = make(KVCacheLayout.LBNHC)
    checked_prompt(second, "b", PROMPT)
    assert "chunks_loaded" not in second.worker.totals
    assert len(list(root.glob("v1/*/meta.json"))) == 2


def test_a_partial_local_hit_is_completed_from_the_directory(make):
    checked_prompt(make(), "a", PROMPT)
    second = make()
    checked_prompt(second, "warm", BLOCK * 5 + 1)
    loaded = second.worker.totals["chunks_loaded"]
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_loaded"] == loaded + 3


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:5000])


def _empty(file):
    file.write_bytes(b"")


def _directory(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, _directory])
@pytest.mark.parametrize("which", [1, 2, 4])
def test_a_damaged_chunk_is_computed_and_healed(make, root, damage, which):
    first = make()
    request = checked_prompt(first, "a", PROMPT)
    key = key_of(request, min(which * PER_CHUNK, len(request.block_hashes)))
    (file,) = root.glob(f"v1/*/r0/*/{key.hex()}.kv")
    size = file.stat().st_size
    damage(file)
    second = make()
    checked_prompt(second, "b", PROMPT)
    assert second.worker.totals["chunks_bad"] == 1
    assert second.worker.totals["chunks_bad_removed"] == 1
    assert file.is_file()
    assert file.stat().st_size == size
    third = make()
    checked_prompt(third, "c", PROMPT)
    assert third.worker.totals["chunks_loaded"] == 4
    assert "chunks_bad" not in third.worker.totals


def test_too_little_host_memory_drops_stores_which_later_requests_make_up_for(make, root):
    engine = make(extra={"host_memory": "1MiB"})  # 15 chunks
    checked_prompt(engine, "first", 30 * CHUNK + 1)
    totals = engine.worker.totals
    assert totals["stores_dropped"] > 0
    assert totals["chunks_stored"] + totals["stores_dropped"] == 30
    for again in range(5):
        checked_prompt(engine, f"again{again}", 30 * CHUNK + 1)
    assert len(files(root)) == totals["chunks_stored"] == 30


def test_many_requests_at_once_share_and_stay_exact(make):
    prefix = list(range(2 * CHUNK))
    prompts = [[*prefix, *([100 + index] * (CHUNK + 40 * index))] for index in range(6)]
    first, second = make(), make()
    for engine in (first, second):
        requests = [engine.request(f"r{i}", prompt) for i, prompt in enumerate(prompts)]
        run(engine)
        assert all(request.is_finished() for request in requests)
    assert second.worker.totals["chunks_loaded"] > 6
    third = make()
    for index, prompt in enumerate(prompts):
        checked_prompt(third, f"r{index}", prompt)


@pytest.mark.parametrize("steps_without", [0, 1, 1000])
def test_stores_are_submitted_once_where_vllm_forgets_to_wait_for_them(make, root, steps_without):
    engine = make()
    submitted = []
    side = engine.worker.connector.worker_side
    side._engine = Wrapped(side._engine, store=lambda *args: submitted.append(args))
    remaining = iter(range(steps_without))
    output = engine.worker.output

    def forgetting(*args):
        engine.worker.forgets_wait_for_save = next(remaining, None) is not None
        return output(*args)

    engine.worker.output = forgetting
    checked_prompt(engine, "a", PROMPT)
    assert len(submitted) == len(files(root)) == 4
    side._engine = side._engine.real
    checked_prompt(make(), "b", PROMPT)


class Wrapped:
    """The C++ engine with something done before some of its calls."""

    def __init__(self, real, **before):
        self.real = real
        self._before = before

    def __getattr__(self, name):
        def call(*args):
            self._before[name](*args)
            return getattr(self.real, name)(*args)

        return call if name in self._before else getattr(self.real, name)


def broken(*_):
    raise RuntimeError("broken")


def test_a_store_that_cannot_be_started_is_dropped(make, root, lines):
    engine = make()
    side = engine.worker.connector.worker_side
    side._engine = Wrapped(side._engine, store=broken)
    checked_prompt(engine, "a", PROMPT)
    assert files(root) == []
    side._engine = side._engine.real
    checked_prompt(engine, "b", PROMPT)
    assert len(files(root)) == 4
    assert lines().count("lmkv: a store could not be started: broken") == 1


def test_a_load_that_cannot_be_started_is_computed(make, lines):
    checked_prompt(make(), "a", PROMPT)
    second = make()
    side = second.worker.connector.worker_side
    side._engine = Wrapped(side._engine, load=broken)
    checked_prompt(second, "b", PROMPT)
    assert second.counted == {"tokens_failed": 3 * CHUNK + 2 * BLOCK}
    assert lines().count("lmkv: a load could not be started: broken") == 1


def age(file):
    os.utime(file, (1e9, 1e9))


def stamps(engine, root, request):
    """Modification times of the files of a request's chunks, head first."""
    ends = [*range(PER_CHUNK, len(request.block_hashes), PER_CHUNK), len(request.block_hashes)]
    keys = [key_of(request, end).hex() for end in ends]
    return [next(root.glob(f"v1/*/r0/*/{key}.kv")).stat().st_mtime for key in keys]


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_prefixs_head_is_newer_than_its_tail_after_stores_loads_and_local_hits(make, root):
    first = make()
    request = checked_prompt(first, "a", PROMPT)
    stored = stamps(first, root, request)
    assert stored == sorted(stored, reverse=True)
    assert len(set(stored)) == 4
    for file in files(root):
        age(file)
    second = make()
    checked_prompt(second, "b", PROMPT)  # loads
    wait_for(lambda: min(stamps(second, root, request)) > 1.5e9)
    loaded = stamps(second, root, request)
    assert loaded == sorted(loaded, reverse=True)
    for file in files(root):
        age(file)
    second.side._stores._known.clear()  # what it knows was said in this tick
    longer = checked_prompt(second, "c", PROMPT + 2 * CHUNK)  # finds the head in its own cache
    wait_for(lambda: min(stamps(second, root, longer)[:3]) > 1.5e9)
    used = stamps(second, root, longer)
    assert used == sorted(used, reverse=True)


def test_a_full_directory_drops_stores_and_says_so_once(make, root, lines):
    engine = make(extra={"free_space_floor": 90})
    checked_prompt(engine, "a", PROMPT)
    checked_prompt(engine, "b", [1, *range(PROMPT)])
    assert files(root) == []
    assert engine.worker.totals["stores_dropped_full"] == 8
    (line,) = [line for line in lines() if "are not stored" in line]
    assert f"in {root} until there is room: the disk has no more free than is to stay free" in line
    assert "capacity unlimited, 90 %" in line


def test_the_capacity_reaches_the_core(make, root):
    engine = make(extra={"capacity": "1GiB"})
    wait_for(lambda: engine.worker.connector.worker_side._engine.stats()["housekeeping_passes"])
    checked_prompt(engine, "a", PROMPT)
    assert engine.worker.totals["store_capacity"] == 1 << 30
    assert len(files(root)) == 4
    with pytest.raises(ConfigError, match="capacity holds fewer than two chunks"):
        make(extra={"capacity": 4096})


def test_a_load_of_more_than_was_promised_is_computed(make, monkeypatch):
    engine = make()
    promise = {"b": (CHUNK, True)}
    monkeypatch.setattr(
        engine.connector,
        "get_num_new_matched_tokens",
        lambda request, computed: promise.pop(request.request_id, (0, False)),
    )
    checked_prompt(engine, "b", PROMPT)
    assert promise == {}
    assert engine.counted == {"tokens_failed": CHUNK}


def test_a_load_of_fewer_tokens_than_promised_is_exact(make, monkeypatch):
    checked_prompt(make(), "a", PROMPT)
    second = make()
    ask = second.connector.get_num_new_matched_tokens

    def fewer(request, computed):
        tokens, _ = ask(request, computed)
        return tokens - 3 * BLOCK, True

    monkeypatch.setattr(second.connector, "get_num_new_matched_tokens", fewer)
    checked_prompt(second, "b", PROMPT)
    assert second.counted == {"tokens_loaded": 3 * CHUNK - BLOCK}


def test_memory_that_cannot_be_copied_is_refused(make):
    engine = make()
    side = WorkerSide(engine.config, engine.worker.cache, engine.side._config)
    side.register({name: cache.to("meta") for name, cache in engine.worker.caches.items()})
    assert side.hello.refusal == "lmkv cannot copy meta memory"


def test_the_first_line_says_how_files_are_read_and_why(make, lines):
    make(extra={"io_engine": "threads", "direct_io": "off"})
    (line,) = [line for line in lines() if "namespace" in line]
    assert "io engine threads (asked for), direct I/O off (switched off)" in line
    assert re.search(r"shared no \(\w+ is this host's alone\), file mode private", line)
    assert not [line for line in lines() if "io_uring is not used" in line]


@pytest.mark.parametrize(
    ("found", "warning"),
    [
        ({"pin_error": "out of memlock"}, "not be pinned"),
        ({"io_engine": "threads", "io_engine_reason": "no io_uring here"}, "no io_uring here"),
        ({}, None),
    ],
)
def test_what_makes_it_slow_is_warned_of_at_start(lines, found, warning):
    slow(Config(path=("/c",)), {"pin_error": "", "io_engine": "io_uring", **found}, 0)
    said = lines()
    assert [line for line in said if warning in line] if warning else said == []


def test_what_a_group_shares_is_the_groups(make, root):
    engine = make(extra={"file_mode": "group", "shared": "yes"})
    checked_prompt(engine, "a", PROMPT)
    engine.worker.connector.shutdown()
    modes = {path: path.stat().st_mode & 0o7777 for path in root.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o660}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o2770}


def test_a_directory_that_its_group_cannot_enter_is_warned_of(tmp_path, lines):
    tmp_path.chmod(0o700)
    closed_to_group(Config(path=(str(tmp_path),)), ())
    closed_to_group(Config(path=(str(tmp_path),), file_mode="group"), {0})
    assert lines() == []
    closed_to_group(Config(path=(str(tmp_path),), file_mode="group"), ())
    (line,) = lines()
    assert f"chmod g+rwxs {tmp_path}" in line
    tmp_path.chmod(0o2770)
    closed_to_group(Config(path=(str(tmp_path),), file_mode="group"), ())
    assert lines() == [line]


def test_the_namespace_says_what_the_kv_is_made_of(make, root):
    make(extra={"namespace": "mine"})
    (meta,) = root.glob("v1/*/meta.json")
    facts = json.loads(meta.read_text())["facts"]
    assert facts["namespace"] == "mine"
    assert facts["block_tokens"] == BLOCK
    assert facts["chunk_tokens"] == CHUNK
    assert facts["layers"] == LAYERS
    assert facts["page_order"] == "HNC"
    assert facts["hash_algorithm"] == "sha256"
    assert facts["architectures"] == ["LlamaForCausalLM"]


def test_a_path_that_cannot_be_used_stops_the_start(make, root):
    root.write_text("a file")
    with pytest.raises(ConfigError):
        make()


def test_an_idle_step_of_a_worker_takes_microseconds(make):
    engine = make()
    checked_prompt(engine, "a", PROMPT)
    side, metadata = engine.worker.connector.worker_side, StepMetadata()

    def step():
        side._poll_at = 0.0  # in a real one most steps leave it out
        side.begin_step(metadata)
        side.start_loads()
        side.submit_stores()
        side.poll()
        side.take_failed_blocks()
        side.take_stats()
        side.take_report()

    assert seconds_per_call(step) < 50e-6
