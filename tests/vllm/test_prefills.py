from types import SimpleNamespace

import pytest

from lmkv.vllm.pace import Pace
from lmkv.vllm.prefills import Prefills


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace("auto", 16, clock)


@pytest.fixture
def prefills(pace, clock):
    return Prefills(pace, clock)


def request(name, prompt, computed=0):
    return SimpleNamespace(request_id=name, num_prompt_tokens=prompt, num_computed_tokens=computed)


def test_a_step_takes_from_its_plan_to_its_end(prefills, pace, clock):
    prefills.admit(request("a", 1000))
    number = prefills.step({"a": 1000})
    assert number
    clock.now += 2.0
    prefills.step_ended(number)
    assert pace.compute_seconds_per_token == pytest.approx(0.002)


def test_a_step_planned_ahead_begins_when_the_one_before_it_ends(prefills, pace, clock):
    prefills.admit(request("a", 1000))
    first = request("b", 3000)
    prefills.admit(first)
    one = prefills.step({"a": 1000, "b": 1000})
    first.num_computed_tokens = 1000
    clock.now += 1.0
    two = prefills.step({"b": 1000})  # while the first one runs
    clock.now += 1.0
    prefills.step_ended(one)  # 2 s for 2000 tokens
    clock.now += 1.0
    prefills.step_ended(two)  # 1 s for 1000 tokens, though planned 2 s ago
    assert pace.compute_seconds_per_token == pytest.approx(0.001)


def test_a_step_that_was_not_timed_ends_where_the_next_one_begins(prefills, pace, clock):
    prefills.admit(request("a", 500))
    number = prefills.step({"a": 500})
    clock.now += 5.0
    prefills.step_ended(0)  # an earlier step of decodes
    clock.now += 0.5
    prefills.step_ended(number)
    assert pace.compute_seconds_per_token == pytest.approx(0.001)


def test_only_prompts_count(prefills):
    prefills.admit(request("a", 500))
    assert prefills.step({"a": 500})
    assert prefills.step({"a": 1}) == 0, "it decodes by now"
    assert prefills.step({"b": 500}) == 0, "that is not ours to know"


def test_steps_that_prefill_little_are_not_timed(prefills):
    prefills.admit(request("a", 500, computed=490))
    assert prefills.step({"a": 10}) == 0


def test_the_backlog_is_what_admitted_prompts_have_to_compute(prefills):
    one, two = request("a", 1000, computed=200), request("b", 300)
    prefills.admit(one)
    prefills.admit(two)
    assert prefills.backlog() == 1100
    prefills.step({"a": 500})
    one.num_computed_tokens = 700
    assert prefills.backlog() == 600
    prefills.forget("b")
    assert prefills.backlog() == 300
    prefills.step({"a": 300})
    assert prefills.backlog() == 0
