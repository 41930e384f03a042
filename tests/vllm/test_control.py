"""What a request may ask for itself, through vLLM's ``kv_transfer_params``."""

import time

import pytest
from scheduler_harness import CHUNK, PER_CHUNK, Engine, chunk_file, key_of, put

from lmkv.errors import ConfigError
from lmkv.vllm.control import DEFAULT, Control, parse

PROMPT = 3 * CHUNK + 9


@pytest.fixture
def engine(tiny_model, root):
    return Engine(tiny_model, root)


def asks(**wanted):
    return {"extra_args": {"kv_transfer_params": {"lmkv": wanted}}}


def stored(root):
    return sorted(root.glob("v1/*/r0/*/*.kv"))


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True}, {"lmkv": {}}])
def test_who_asks_for_nothing_gets_the_default(params):
    assert parse(params) == DEFAULT == Control(store=True, load=True, max_load_tokens=None)


def test_all_that_may_be_asked_for():
    wanted = {"store": False, "load": True, "max_load_tokens": 512}
    assert parse({"lmkv": wanted}) == Control(**wanted)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"stor": False}, "did you mean store"),
        ({"max_load_token": 1}, "did you mean max_load_tokens"),
        ({"store": "no"}, "store: expected true or false, not 'no'"),
        ({"load": 0}, "load: expected true or false"),
        ({"max_load_tokens": -1}, "must not be negative"),
        ({"max_load_tokens": True}, "expected a whole number"),
        ({"max_load_tokens": 1.5}, "expected a whole number"),
        ("off", "expected an object"),
    ],
)
def test_what_cannot_be_meant_is_said(wanted, said):
    with pytest.raises(ConfigError, match=said):
        parse({"lmkv": wanted})


@pytest.mark.parametrize(
    "wanted",
    [
        {"x" * 10_000_000: 1},
        {"store": "x\n" * 5_000_000},
        {"max_load_tokens": [["x"] * 1000] * 1000},
        {"max_load_tokens": -(10**4000)},
    ],
)
def test_what_anybody_may_send_holds_up_nobody_and_fits_into_a_line(wanted):
    begin = time.thread_time()
    with pytest.raises(ConfigError) as refused:
        parse({"lmkv": wanted})
    assert time.thread_time() - begin < 0.5
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


def test_a_request_that_is_not_to_be_stored_is_not(engine, root):
    engine.request("a", PROMPT, **asks(store=False))
    engine.run()
    assert stored(root) == []
    engine.assert_at_rest()


def test_it_may_load_all_the_same_and_renews_what_it_uses(engine, root):
    engine.request("a", PROMPT)
    engine.run()
    other = Engine(engine.config.model_config.model, root)
    other.request("b", PROMPT, **asks(store=False))
    other.run()
    assert other.counted["tokens_loaded"] == 3 * CHUNK
    other.assert_at_rest()


def test_a_request_that_is_not_to_load_computes_and_stores_what_is_missing(engine, root):
    request = engine.request("a", PROMPT)
    engine.run()
    missing = chunk_file(root, key_of(request, 2 * PER_CHUNK))
    missing.unlink()
    other = Engine(engine.config.model_config.model, root)
    other.request("b", PROMPT, **asks(load=False))
    steps = other.run()
    assert "tokens_loaded" not in other.counted
    assert [store.key for step in steps for store in step.stores] == [
        key_of(request, 2 * PER_CHUNK)
    ]
    assert missing.exists()


@pytest.mark.parametrize(
    ("most", "loaded"),
    [(0, 0), (CHUNK - 1, 0), (CHUNK, CHUNK), (3 * CHUNK - 1, 2 * CHUNK), (10**9, 3 * CHUNK)],
)
def test_no_more_is_loaded_than_was_asked_for(engine, root, most, loaded):
    request = engine.request("probe", PROMPT)
    engine.abort(request)
    put(root, *(key_of(request, chunk * PER_CHUNK) for chunk in (1, 2, 3)))
    engine.request("a", PROMPT, **asks(max_load_tokens=most))
    steps = engine.run()
    assert engine.counted.get("tokens_loaded", 0) == loaded
    assert not any(step.stores for step in steps), "all of it is there"


def test_a_request_that_asks_for_neither_is_not_even_looked_up(engine, root, monkeypatch):
    monkeypatch.setattr(engine.side._lookup, "find", None)
    monkeypatch.setattr(engine.side._lookup, "present", None)
    engine.request("a", PROMPT, **asks(store=False, load=False))
    engine.run()
    assert stored(root) == []


def test_one_that_is_not_understood_passes_by_and_is_said_once(engine, root, lines):
    for name in ("a", "b"):
        engine.request(name, PROMPT, **asks(stor=False))
        engine.run()
    assert stored(root) == []
    assert engine.counted["requests_misunderstood"] == 2
    assert len([line for line in lines() if "did you mean store" in line]) == 1
    engine.request("c", PROMPT)
    engine.run()
    assert stored(root) != []
    engine.assert_at_rest()
