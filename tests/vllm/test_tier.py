"""LMKVTier below vLLM's own offloading manager: real CPU cache, real engine, real files."""

import itertools
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tier_harness import (
    BLOCK_BYTES,
    CHUNK,
    FILE_BYTES,
    PER_CHUNK,
    Native,
    config_of,
    content,
    files,
    tier,
)
from typer.testing import CliRunner
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.v1.kv_offload.base import LookupResult, ReqContext
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from lmkv.cli import app
from lmkv.errors import ConfigError
from lmkv.vllm import LMKVTier
from lmkv.vllm.tier_identity import label, refusal, settings, tier_key
from lmkv.vllm.tier_metrics import TIER_COUNTERS, TIER_GAUGES


@pytest.fixture
def make(tiny_model, root):
    """Makes managers with one LMKVTier each over one directory; all are shut down at the end."""
    made = []

    def make(model=tiny_model, path=root, config=None, **settings):
        made.append(Native(config_of(model, tier(path, **settings), **(config or {}))))
        return made[-1]

    yield make
    for native in made:
        native.close()


# -- there and back -----------------------------------------------------------------------


def test_what_one_engine_stores_another_loads_with_the_same_bytes(make, root):
    first = make()
    first.store("a document", 10)
    assert len(files(root)) == 10
    assert {file.stat().st_size for file in files(root)} == {FILE_BYTES}
    assert first.totals["chunks_stored"] == 10
    second = make()
    assert second.load("a document", 10) == 10
    assert second.totals["chunks_loaded"] == 10
    assert second.load("a document", 12) == 10
    assert second.load("another", 3) == 0


def test_a_prefix_hits_as_far_as_it_is_there(make, root):
    make().store("a document", 10)
    second = make()
    first_six = {tier_key(key).hex() for key in second.prompt("a document", 6).keys}
    for file in files(root):
        if file.stem not in first_six:
            file.unlink()
    assert second.load("a document", 10) == 6


def test_a_file_has_what_all_workers_of_the_host_hold(make, root):
    two = {"workers": 2}
    first = make(config=two, one_host=True)
    assert first.row_bytes == 2 * PER_CHUNK * BLOCK_BYTES
    first.store("a document", 3)
    assert {file.stat().st_size for file in files(root)} == {4096 + first.row_bytes}
    assert make(config=two, one_host=True).load("a document", 3) == 3
    assert make().load("a document", 3) == 0


def test_groups_of_layers_have_chunks_of_their_own(make, root):
    groups = {"tokens_per_block": (16, 16)}
    make(config=groups).store("a document", 4, groups=2)
    assert len(files(root)) == 8
    assert make(config=groups).load("a document", 4, groups=2) == 8


def test_a_hit_is_promoted_in_the_step_that_asks(make):
    make().store("a document", 20)
    second = make()
    prompt = second.prompt("a document", 20)
    assert second.look_up(prompt) == [LookupResult.HIT_PENDING] * 20
    second.idle()
    assert second.look_up(prompt) == [LookupResult.HIT] * 20


def test_a_store_that_is_asked_for_twice_is_one_file(make, root):
    make().store("a document", 5)
    second = make()
    second.store("a document", 5)
    assert len(files(root)) == 5
    assert second.totals["stores_already_present"] == 5
    assert second.totals.get("stores_dropped", 0) == 0


def test_rows_are_free_when_they_are_copied_not_when_they_are_written(make, root):
    native = make()
    native.store("one", 30)
    native.store("two", 30)
    native.store("three", 30)  # of 64 rows
    assert len(files(root)) == 90
    assert make().load("one", 30) == 30


def test_a_burst_larger_than_host_memory_waits_for_it(make, root):
    native = make(host_memory="1MiB")  # 15 chunks
    native.store("a document", 60)
    assert len(files(root)) == 60
    assert native.totals.get("stores_dropped", 0) == 0


def test_a_prompts_end_goes_before_its_beginning(make, root):
    native = make()
    prompt = native.store("a document", 20)
    times = {file.stem: file.stat().st_mtime_ns for file in files(root)}
    in_order = [times[tier_key(key).hex()] for key in prompt.keys]
    assert in_order == sorted(in_order, reverse=True)
    assert len(set(in_order)) == 20


def age(root):
    """Nothing was used lately."""
    long_ago = time.time() - 1000
    for file in files(root):
        os.utime(file, (long_ago, long_ago))
    return long_ago + 500


@pytest.mark.parametrize("more", [3, 0], ids=["and stores more", "and nothing else"])
def test_what_a_request_has_from_vllms_own_caches_counts_as_used(make, root, more):
    native = make()
    old = native.store("a document", 5)
    then = age(root)
    native.store("a document", 5 + more)
    native.until(lambda: native.totals.get("chunks_touched", 0) >= 5)
    for key in old.keys:
        (file,) = root.glob(f"v1/*/r0/*/{tier_key(key).hex()}.kv")
        assert file.stat().st_mtime > then


def test_what_is_loaded_counts_as_used(make, root):
    make().store("a document", 5)
    then = age(root)
    native = make()
    assert native.load("a document", 5) == 5
    native.until(lambda: native.totals.get("chunks_touched", 0) >= 5)
    assert all(file.stat().st_mtime > then for file in files(root))


# -- what is damaged, gone or full --------------------------------------------------------


def damage(root, key):
    (file,) = root.glob(f"v1/*/r0/*/{tier_key(key).hex()}.kv")
    with open(file, "r+b") as opened:
        opened.seek(FILE_BYTES // 2)
        byte = opened.read(1)
        opened.seek(FILE_BYTES // 2)
        opened.write(bytes([byte[0] ^ 1]))
    return file


def test_a_damaged_file_is_one_miss_and_is_removed(make, root):
    make().store("a document", 10)
    second = make()
    prompt = second.prompt("a document", 10)
    file = damage(root, prompt.keys[4])
    assert second.look_up(prompt) == [LookupResult.HIT_PENDING] * 10
    second.idle()
    assert not file.exists()
    # All others came, those behind it too, and it is not asked for again and again.
    answers = [second.manager.lookup(key, prompt.context) for key in prompt.keys]
    assert answers == [LookupResult.HIT] * 4 + [LookupResult.MISS] + [LookupResult.HIT] * 5
    second.check(prompt, prompt.keys[:4] + prompt.keys[5:])
    assert second.totals["chunks_bad"] == second.totals["chunks_bad_removed"] == 1


def test_what_failed_to_load_can_be_stored_and_loaded_again(make, root):
    make().store("a document", 10)
    second = make()
    damage(root, second.prompt("a document", 10).keys[4])
    assert second.load("a document", 10) == 4
    second.store("a document", 10)
    assert len(files(root)) == 10
    assert make().load("a document", 10) == 10


def test_a_file_that_went_after_it_was_seen_is_a_miss(make, root):
    make().store("a document", 6)
    second = make()
    prompt = second.prompt("a document", 6)
    assert second.tier.lookup(prompt.keys[0], prompt.context) is LookupResult.HIT
    for file in files(root):
        file.unlink()
    assert second.load("a document", 6) == 0
    assert second.totals["chunks_missing"] >= 1


def test_a_truncated_file_is_a_miss_and_is_removed(make, root):
    make().store("a document", 2)
    second = make()
    last = second.prompt("a document", 2).keys[1]
    (file,) = root.glob(f"v1/*/r0/*/{tier_key(last).hex()}.kv")
    os.truncate(file, FILE_BYTES - 4096)
    assert second.load("a document", 2) == 1
    assert not file.exists()


def test_capacity_evicts(make, root):
    native = make(capacity=40 * FILE_BYTES)
    # What others write to this disk counts until it is counted again, and stores are refused then:
    # as long as there are new ones, room is made.
    deadline = time.monotonic() + 60
    for number in itertools.count():
        native.store(f"document {number}", 10)
        if native.totals.get("chunks_evicted_capacity", 0) > 0:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(files(root)) <= 40
    assert native.gauges["store_capacity"] == 40 * FILE_BYTES


def test_a_full_directory_drops_stores_counts_them_and_says_so_once(make, root, lines):
    make().store("a document", 12)
    native = make(capacity=2 * FILE_BYTES, eviction="lru")
    native.until(lambda: native.tier._core.engine.stats()["housekeeping_passes"])
    for number in range(5):
        native.store(f"another {number}", 10)
    assert native.totals["stores_dropped_full"] > 0
    assert len([line for line in lines() if "are not stored in" in line]) == 1


def test_a_request_of_unknown_chunks_is_a_miss(make):
    native = make()
    prompt = native.store("a document", 2)
    strange = ReqContext(req_id="of another engine")
    native.manager.on_new_request(strange)
    assert native.tier.lookup(prompt.keys[0], strange) is LookupResult.MISS
    native.manager.on_request_finished(strange)


def test_chunks_of_unknown_places_are_neither_stored_nor_loaded(make, root):
    native = make()
    prompt = native.store("a document", 2)
    strange = ReqContext(req_id="of another engine")
    for number, submit in ((901, native.tier.submit_load), (902, native.tier.submit_store)):
        submit(TransferJob(number, prompt.keys, [0, 1], number == 901, strange))
    assert [(r.job_id, r.success) for r in native.tier.get_finished_jobs()] == [
        (901, False),
        (902, False),
    ]
    assert len(files(root)) == 2


# -- who shares ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"namespace": "mine"},
        {"config": {"dtype": "fp8"}},
        {"config": {"layers": ("layers.0.attn",)}},
        {"config": {"layout": "LBHNC"}},
        {"config": {"tokens_per_block": (32,)}},
        {"model": "somebody/else"},
    ],
    ids=["namespace", "dtype", "layers", "layout", "block", "model"],
)
def test_tiers_that_differ_do_not_share(make, root, other):
    make().store("a document", 3)
    assert make(**other).load("a document", 3) == 0
    assert len(list(root.glob("v1/*/meta.json"))) == 2


def test_meta_says_what_a_namespace_is_made_of(make, root, tiny_model):
    make()
    (meta,) = root.glob("v1/*/meta.json")
    said = json.loads(meta.read_text())
    assert said["facts"]["tier"] == "direct, all workers"
    assert said["facts"]["chunk_tokens"] == CHUNK
    assert said["facts"]["model"] == str(tiny_model)  # which has no weights
    assert said["about"]["model"] == str(tiny_model)


def test_the_tools_know_its_namespaces_and_explain_passes_them_by(make, root):
    make().store("a document", 3)
    runner = CliRunner()
    told = runner.invoke(app, ["stats", str(root), "--json"])
    (one,) = json.loads(told.output)["namespaces"]
    assert (one["chunks"], one["tokens"]) == (3, 3 * CHUNK)
    assert runner.invoke(app, ["verify", str(root)]).exit_code == 0
    told = runner.invoke(app, ["explain", str(root), "--tokens", "-"], input="1 2 3")
    assert told.exit_code == 2
    assert "there is no namespace" in told.output + told.stderr


def test_a_local_model_is_its_weights(make, root, tmp_path):
    names = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for name, byte in zip(names, (b"1", b"1", b"2"), strict=True):
        name.mkdir()
        (name / "model.bin").write_bytes(byte * 100)
    make(model=names[0]).store("a document", 3)
    assert make(model=names[1]).load("a document", 3) == 3
    assert make(model=names[2]).load("a document", 3) == 0


def test_a_model_that_is_known_by_its_name_only_is_warned_of(make, lines, tiny_model, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"1" * 100)
    make(model=tmp_path)
    assert not any("told its name only" in line for line in lines())
    for number, name in enumerate(("somebody/else", tiny_model)):  # a directory without weights
        make(model=name)
        assert sum("told its name only" in line for line in lines()) == number + 1
        assert any(f"told its name only, {name}" in line for line in lines())


@pytest.mark.parametrize(
    ("gpus", "given", "words"),
    [
        (8, {}, "not told on how many hosts 2 workers are"),  # 4 and 4 of 8 workers, say
        (8, {"one_host": False}, '"one_host": true'),
        (1, {"one_host": True}, "2 workers are more than this host has GPUs"),
    ],
)
def test_workers_that_may_be_on_several_hosts_are_refused(
    make, root, lines, monkeypatch, gpus, given, words
):
    platform = "lmkv.vllm.tier_identity.current_platform"
    monkeypatch.setattr(f"{platform}.is_cuda_alike", lambda: True)
    monkeypatch.setattr(f"{platform}.device_count", lambda: gpus, raising=False)
    native = make(config={"workers": 2}, **given)
    prompt = native.prompt("a document", 3)
    native.compute(prompt)
    native.idle()
    assert native.load("b document", 3) == 0
    assert native.tier.lookup(prompt.keys[0], prompt.context) is LookupResult.MISS
    assert any(words in line for line in lines())
    assert not root.exists()


def test_workers_that_vllm_knows_to_be_on_one_host_need_no_word(tiny_model):
    config = config_of(tiny_model, workers=2)
    assert refusal(config, one_host=False)
    assert not refusal(replace(config, replicated_layout=True), one_host=False)
    assert not refusal(config, one_host=True)
    assert not refusal(config_of(tiny_model), one_host=False)


@pytest.mark.parametrize("size", ["dcp_size", "pcp_size"])
def test_context_parallelism_is_refused_as_by_the_connector(tiny_model, size):
    config = config_of(tiny_model, workers=2)
    config = replace(config, parallel=replace(config.parallel, **{size: 2}))
    assert "context parallelism spreads a block over ranks" in refusal(config, one_host=True)


# -- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"capasity": "1GiB"}, "capasity: unknown setting; did you mean capacity?"),
        ({"chunk_tokens": 256}, "chunk_tokens: is no setting of a tier; vLLM makes the chunks"),
        ({"store_tail": True}, "store_tail: is no setting of a tier"),
        ({"host_memory": "100KiB"}, "host_memory: must be between"),
        ({"one_host": "yes"}, "one_host: expected true or false, got 'yes'"),
        ({"path": "relative"}, "path: expected an absolute path"),
        ({"host_memory": "1MiB", "capacity": 1000}, "capacity holds fewer than two chunks"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_start(make, given, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        make(**given)


def test_settings_come_from_the_environment_too(make, root, monkeypatch):
    monkeypatch.setenv("LMKV_CAPACITY", "1GiB")
    monkeypatch.setenv("LMKV_CHUNK_TOKENS", "512")  # of a connector's
    native = make()
    native.store("a document", 1)
    assert native.gauges["store_capacity"] == 1 << 30


def test_a_directory_that_cannot_be_used_is_said_at_start(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the directory"):
        make(path=tmp_path / "file" / "cache")


# -- what vLLM wants of a tier ------------------------------------------------------------


def test_events_are_of_chunks_that_have_their_files(make, root):
    native = make(config={"events": True}, enable_kv_events=True, locality="REMOTE")
    list(native.manager.take_events())
    prompt = native.store("a document", 4)
    events = [e for e in native.manager.take_events() if e.medium.value == "STORAGE"]
    assert sorted(key for event in events for key in event.keys) == sorted(prompt.keys)
    assert {(event.removed, event.locality.value) for event in events} == {(False, "REMOTE")}
    assert not list(native.tier.take_events())


def test_events_are_off_where_vllm_has_none(make, lines):
    native = make(enable_kv_events=True)
    native.store("a document", 4)
    assert not list(native.tier.take_events())
    assert not native.tier._jobs._stored
    assert any("enable_kv_events has no effect" in line for line in lines())


def test_stores_that_are_fast_are_not_held_back_by_vllms_backpressure(make, root, lines):
    detector = {"backpressure_cls": "EMABackpressureDetector"}
    native = make(backpressure=detector)
    assert native.tier.bp_detector is not None
    native.store("a document", 5)
    assert len(files(root)) == 5
    assert sum("backpressure has no use here" in line for line in lines()) == 1


def test_a_reset_ends_it_because_the_weights_may_be_others(make, root, lines):
    native = make()
    native.store("a document", 4)
    prompt = native.prompt("b", 4)
    native.compute(prompt)
    native.finish(prompt)
    native.manager.reset_cache()
    assert not native.manager.has_pending_work()
    assert native.load("a document", 4) == 0
    native.store("c", 4)
    native.manager.reset_cache()
    assert len(files(root)) <= 8
    assert sum("the cache was reset" in line for line in lines()) == 1


def test_loads_that_are_under_way_end_with_a_reset(make):
    make().store("a document", 10)
    native = make()
    prompt = native.prompt("a document", 10)
    native.look_up(prompt)
    native.step()
    native.manager.reset_cache()
    assert not native.manager._jobs
    assert not native.tier._jobs.under_way


def test_nothing_is_left_of_a_request(make):
    native = make()
    for number in range(3):
        native.store(f"document {number}", 5)
        native.load(f"document {number}", 7)
    native.settle()
    assert not native.tier._requests
    assert not native.tier._lookup._requests
    assert not native.tier._lookup._in_memory
    assert not native.tier._jobs._jobs
    assert not native.tier.has_pending_work()


def test_the_pages_example_is_one_that_vllm_and_lmkv_take():
    page = (Path(__file__).parents[2] / "docs" / "tier.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    given = KVTransferConfig(**json.loads(text))
    assert KVConnectorFactory.get_connector_class(given).__name__ == given.kv_connector
    extra = given.kv_connector_extra_config
    assert OffloadingSpecFactory.get_spec_cls(extra) is TieringOffloadingSpec
    (entry,) = extra["secondary_tiers"]
    assert SecondaryTierFactory.get_tier_class(entry) is LMKVTier
    spec = SimpleNamespace(tokens_per_block=(16,), blocks_per_chunk=extra["blocks_per_chunk"])
    named = {name: value for name, value in entry.items() if name not in {"type", "module_path"}}
    assert settings(named, {}, spec).chunk_tokens == 256


def test_every_counter_is_defined_and_reaches_prometheus(make):
    definitions = TieringOffloadingSpec.build_metric_definitions(
        {"secondary_tiers": [tier("/anywhere")]}
    )
    ours = {name for name in definitions if name.startswith("vllm:lmkv_")}
    assert len(ours) == len(TIER_COUNTERS) + len(TIER_GAUGES)
    assert "vllm:lmkv_writing_seconds_total" in ours
    native = make()
    native.store("a document", 4)
    assert 0 < native.totals["writing_seconds"] < 60
    assert native.totals["bytes_stored"] == 4 * FILE_BYTES
    native.settle()
    assert native.tier.get_stats() is None
    assert set(TIER_COUNTERS) - {"lookups_given_up"} <= set(native.tier._core.engine.stats())


def test_each_entry_has_the_label_that_vllm_gives_it(tiny_model, tmp_path):
    entries = [
        tier(tmp_path / "one", capacity="1GiB"),
        {"type": "example"},
        tier(tmp_path / "two", locality="REMOTE", backpressure={}),
    ]
    spec = TieringOffloadingSpec(config_of(tiny_model, *entries))
    given = {"host_memory": "8MiB", "free_space_floor": 0}
    assert label("LMKVTier", {"path": str(tmp_path / "two"), **given}, spec) == "3:LMKVTier"
    given["capacity"] = "1GiB"
    assert label("LMKVTier", {"path": str(tmp_path / "one"), **given}, spec) == "1:LMKVTier"
    assert label("LMKVTier", {"path": "/elsewhere", **given}, spec) == "LMKVTier"


def test_the_class_is_what_vllm_asks_for():
    assert LMKVTier.cache_hit_source is CacheHitSource.DISK
    assert not LMKVTier.__abstractmethods__


def test_content_of_the_harness_differs_by_key():
    assert not (content(b"a", 64) == content(b"b", 64)).all()
