"""TierLookup: many questions of vLLM's are few of the directory."""

import hashlib
import time

import pytest
from vllm.v1.kv_offload.base import make_offload_key

from lmkv._C import Directory
from lmkv.vllm.tier_identity import tier_key
from lmkv.vllm.tier_lookup import ANSWER_SECONDS, BATCH, TierLookup


class Silent:
    """A filesystem that has not answered yet, and then has all that is asked for."""

    def __init__(self):
        self.asked = []
        self.answers = False

    def begin_step(self):
        pass

    def present(self, names):
        self.asked.append(list(names))
        return list(names) if self.answers else None


@pytest.fixture
def silent():
    return Silent()


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def lookup(root, silent, clock):
    lookup = TierLookup(Directory(root=[str(root)], namespace=bytes(32), ranks=1), lambda: clock[0])
    lookup._lookup = silent
    return lookup


def keys_of(chunks, groups=1):
    """In the order of a prompt, one group behind the other, with the token behind each."""
    return {
        make_offload_key(hashlib.sha256(str(index).encode()).digest(), group): (index + 1) * 64
        for group in range(groups)
        for index in range(chunks)
    }


def find_all(lookup, keys, request="a request"):
    return [lookup.find(request, key, keys) for key in keys]


def test_what_is_not_answered_is_asked_for_once_a_step(lookup, silent):
    keys = keys_of(5 * BATCH, groups=2)
    for steps in (1, 2):
        assert find_all(lookup, keys) == [None] * len(keys)
        assert find_all(lookup, keys) == [None] * len(keys)
        assert len(silent.asked) == steps * 2 * 5
        lookup.begin_step()
    assert {len(names) for names in silent.asked} == {BATCH}
    assert {name for names in silent.asked for name in names} == set(map(tier_key, keys))


def test_an_answer_is_known_in_the_next_step(lookup, silent):
    keys = keys_of(2 * BATCH + 1)
    find_all(lookup, keys)
    silent.answers = True
    assert find_all(lookup, keys) == [None] * len(keys)
    lookup.begin_step()
    assert find_all(lookup, keys) == [True] * len(keys)
    assert find_all(lookup, keys) == [True] * len(keys)
    assert len(silent.asked) == 2 * 3


def test_requests_ask_each_for_themselves(lookup, silent):
    keys = keys_of(3)
    assert find_all(lookup, keys, "one") == [None] * 3
    silent.answers = True
    assert find_all(lookup, keys, "another") == [True] * 3


def test_an_answer_is_good_for_a_while(lookup, silent, clock):
    silent.answers = True
    keys = keys_of(3)
    find_all(lookup, keys)
    clock[0] += ANSWER_SECONDS + 1
    silent.answers = False
    assert find_all(lookup, keys) == [None] * 3


def test_a_prompt_that_grew_is_asked_for_to_its_end(lookup, silent):
    silent.answers = True
    assert find_all(lookup, keys_of(3)) == [True] * 3
    assert find_all(lookup, keys_of(BATCH + 5)) == [True] * (BATCH + 5)


def test_a_step_of_a_long_prompt_costs_little_more_than_its_loop(lookup, silent):
    keys = keys_of(8192)
    find_all(lookup, keys)  # makes the names
    slowest = 10 * min(_seconds_of(lambda: [tier_key(key) for key in keys]) for _ in range(5))
    quickest = float("inf")
    for _ in range(5):
        lookup.begin_step()
        quickest = min(quickest, _seconds_of(lambda: find_all(lookup, keys)))
    assert quickest < slowest


def _seconds_of(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
