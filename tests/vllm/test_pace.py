import pytest
from scheduler_harness import seconds_per_call

from lmkv.vllm.lookup import Run
from lmkv.vllm.pace import Pace, Verdict
from lmkv.vllm.reads import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Line

BLOCK = 16
PER_CHUNK = 4
CHUNK = BLOCK * PER_CHUNK


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run_of(chunks, begin=0):
    keys = [bytes([index]) * 32 for index in range(chunks)]
    return Run(keys, begin, begin + chunks * PER_CHUNK, PER_CHUNK)


def pace_of(clock, *, compute=None, load=None, policy="auto"):
    """One that has seen prefills and loads at so many seconds a token."""
    pace = Pace(policy, BLOCK, clock)
    pace.remember_up_to(100)
    if compute:
        pace.saw_prefill(1000, 1000 * compute)
    if load:
        for tokens in (1000, 2000):
            pace.saw_load(tokens, tokens * load, trial=False)
    return pace


def decide(pace, found, first_block=0, ahead=0, backlog=0, in_memory=(), held=0.0):
    return pace.decide(
        found, first_block, in_memory=in_memory, ahead=ahead, backlog=backlog, held=held
    )


def test_a_line_finds_what_no_token_and_each_token_take():
    line = Line(memory=0.9)
    for tokens in (100, 500, 2000, 900):
        line.add(tokens, 0.25 + 0.003 * tokens)
    start, slope = line.fit()
    assert start == pytest.approx(0.25)
    assert slope == pytest.approx(0.003)


def test_samples_of_one_size_are_all_tokens():
    line = Line(memory=0.9)
    for seconds in (1.0, 1.1, 0.9):
        line.add(1000, seconds)
    start, slope = line.fit()
    assert start == 0
    assert slope == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("samples", [[(100, 2.0), (1000, 1.0)], [(100, 0.01), (1000, 2.0)]])
def test_a_line_is_never_below_nothing(samples):
    line = Line(memory=0.9)
    for tokens, seconds in samples:
        line.add(tokens, seconds)
    start, slope = line.fit()
    assert start >= 0
    assert slope > 0


def test_newer_samples_count_more():
    line = Line(memory=0.7)
    for _ in range(20):
        line.add(1000, 1.0)
    for _ in range(10):
        line.add(1000, 9.0)
    assert line.fit()[1] == pytest.approx(0.009, rel=0.05)


def test_before_any_prefill_was_seen_all_is_loaded(clock):
    decision = decide(pace_of(clock, load=10.0), run_of(5))
    assert (decision.chunks, decision.verdict, decision.within) == (5, Verdict.LOAD, None)


def test_the_first_load_is_a_trial_of_a_twentieth_of_computing(clock):
    decision = decide(pace_of(clock, compute=0.001), run_of(10))
    assert (decision.chunks, decision.verdict, decision.is_trial) == (10, Verdict.LOAD, True)
    assert decision.within == pytest.approx(0.05 * 0.001 * 10 * CHUNK)


def test_a_fast_directory_loads_all_of_it(clock):
    decision = decide(pace_of(clock, compute=0.001, load=0.0001), run_of(10))
    assert (decision.chunks, decision.verdict) == (10, Verdict.LOAD)
    assert decision.load_seconds == pytest.approx(0.064)
    assert decision.compute_seconds == pytest.approx(0.64)
    assert decision.within == pytest.approx(0.192)  # three times what is expected
    assert decision.worth == pytest.approx(0.64)
    assert not decision.is_trial


def test_a_load_that_is_expected_to_be_very_fast_has_some_time_all_the_same(clock):
    decision = decide(pace_of(clock, compute=0.001, load=0.000001), run_of(10))
    assert decision.within == pytest.approx(0.25 * 0.64)


def test_a_load_is_given_up_at_the_latest_when_computing_would_be_done(clock):
    decision = decide(pace_of(clock, compute=0.001, load=0.0008), run_of(10))
    assert decision.within == pytest.approx(0.64)


def test_where_loads_do_not_pay_one_is_tried_now_and_then(clock):
    pace = pace_of(clock, compute=0.001, load=0.01)
    pause = FIRST_PAUSE_SECONDS
    for _ in range(8):
        decision = decide(pace, run_of(10))
        assert (decision.chunks, decision.verdict, decision.within) == (0, Verdict.COMPUTE, None)
        clock.now += pause - 1
        assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE
        clock.now += 1
        trial = decide(pace, run_of(10))
        assert trial.is_trial
        assert trial.within == pytest.approx(0.05 * 0.64)
        # One that is decided on and never begins is no trial.
        assert decide(pace, run_of(10)).is_trial
        pace.began_trial(10 * CHUNK)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def test_while_the_first_trial_is_under_way_others_wait_for_a_twentieth_of_computing(clock):
    pace = pace_of(clock, compute=0.001)
    assert decide(pace, run_of(10)).is_trial
    pace.began_trial(10 * CHUNK)
    patience = 0.05 * 0.001 * 10 * CHUNK
    assert decide(pace, run_of(10)).verdict is Verdict.WAIT
    assert decide(pace, run_of(10), held=0.9 * patience).verdict is Verdict.WAIT
    assert decide(pace, run_of(5), held=0.9 * patience).verdict is Verdict.COMPUTE  # it has less
    assert decide(pace, run_of(10), held=1.1 * patience).verdict is Verdict.COMPUTE
    # What is in host memory need not wait.
    pace.remember_up_to(20)
    pace.has_in_memory(run_of(10).keys[:2])
    assert decide(pace, run_of(10)).chunks == 2


@pytest.mark.parametrize("end", ["fast", "slow", "given up"])
def test_nobody_waits_when_the_trial_is_over(clock, end):
    pace = pace_of(clock, compute=0.001)
    pace.began_trial(10 * CHUNK)
    if end == "given up":
        pace.gave_up([], 10 * CHUNK)
    else:
        pace.saw_load(10 * CHUNK, 0.01 if end == "fast" else 10.0, trial=True)
    verdict = decide(pace, run_of(10)).verdict
    assert verdict is (Verdict.LOAD if end == "fast" else Verdict.COMPUTE)


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_small_trial_does_not_speak_for_a_large_load(clock, is_given_up):
    pace = pace_of(clock, compute=0.001)
    assert decide(pace, run_of(1)).is_trial
    pace.began_trial(CHUNK)
    assert decide(pace, run_of(10)).verdict is Verdict.WAIT, "one at a time"
    if is_given_up:
        pace.gave_up([], CHUNK)
        assert decide(pace, run_of(1)).verdict is Verdict.COMPUTE
    pace.saw_load(CHUNK, 1.0, trial=True)  # its client had to connect first
    for chunks in (1, 3):
        assert decide(pace, run_of(chunks)).verdict is Verdict.COMPUTE
    large = decide(pace, run_of(10))
    assert large.is_trial
    assert large.within == pytest.approx(0.05 * 0.001 * 10 * CHUNK)
    pace.began_trial(10 * CHUNK)
    if is_given_up:
        pace.gave_up([], 10 * CHUNK)
        assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE, "now it is known of those, too"
    pace.saw_load(10 * CHUNK, 0.1, trial=True)
    assert decide(pace, run_of(10)).verdict is Verdict.LOAD
    assert decide(pace, run_of(20)).verdict is Verdict.LOAD


def test_what_was_on_its_way_when_a_load_was_given_up_does_not_bring_the_next_trial(clock):
    pace = pace_of(clock, compute=0.001)
    pace.began_trial(40 * CHUNK)
    for _ in range(3):
        pace.gave_up([], 40 * CHUNK)
        pace.saw_rest(2 * CHUNK, 3.0)
        assert decide(pace, run_of(40)).verdict is Verdict.COMPUTE
        clock.now += FIRST_PAUSE_SECONDS - 1
        assert decide(pace, run_of(40)).verdict is Verdict.COMPUTE
        clock.now += LONGEST_PAUSE_SECONDS
        assert decide(pace, run_of(40)).is_trial


def test_nobody_waits_for_a_trial_where_loads_are_known_not_to_pay(clock):
    pace = pace_of(clock, compute=0.001, load=0.01)
    clock.now += FIRST_PAUSE_SECONDS
    assert decide(pace, run_of(10)).is_trial
    pace.began_trial(10 * CHUNK)
    assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE


def test_a_trial_that_read_nothing_is_followed_by_another_at_once(clock):
    pace = pace_of(clock, compute=0.001)
    for _ in range(3):
        assert decide(pace, run_of(10)).is_trial
        pace.began_trial(10 * CHUNK)
        pace.tried_nothing()  # all of it was in host memory
    pace.began_trial(10 * CHUNK)
    clock.now += FIRST_PAUSE_SECONDS - 1  # no longer than without those
    assert decide(pace, run_of(10), held=1.0).verdict is Verdict.COMPUTE
    clock.now += 1
    assert decide(pace, run_of(10)).is_trial


def test_a_trial_that_is_fast_brings_loads_back(clock):
    pace = pace_of(clock, compute=0.001, load=0.01)
    assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE
    clock.now += FIRST_PAUSE_SECONDS
    assert decide(pace, run_of(10)).is_trial
    pace.saw_load(640, 0.02, trial=True)
    decision = decide(pace, run_of(10))
    assert (decision.chunks, decision.verdict) == (10, Verdict.LOAD)


def test_a_load_that_was_given_up_refutes_what_was_expected(clock):
    pace = pace_of(clock, compute=0.001, load=0.0001)
    pace.gave_up([], 10 * CHUNK)
    assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE
    # What the disk did for it afterwards says what is true.
    pace.saw_load(640, 0.4, trial=True)
    assert decide(pace, run_of(10)).verdict is Verdict.LOAD
    pace.saw_load(640, 4.0, trial=True)
    assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE


def test_what_was_not_in_memory_after_all_says_nothing_of_the_disk(clock):
    pace = pace_of(clock, compute=0.001, load=0.0001)
    found = run_of(10)
    pace.has_in_memory(found.keys)
    assert decide(pace, found).disk_tokens == 0
    pace.gave_up(found.keys[4:], 0)
    decision = decide(pace, found)
    assert (decision.chunks, decision.verdict) == (10, Verdict.LOAD)
    assert decision.disk_tokens == 6 * CHUNK, "the first four are still thought to be there"


def test_where_nothing_is_known_after_a_load_was_given_up_one_is_tried_after_a_pause(clock):
    pace = pace_of(clock, compute=0.001)
    assert decide(pace, run_of(10)).is_trial
    pace.began_trial(10 * CHUNK)
    pace.gave_up([], 10 * CHUNK)
    assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE
    clock.now += 2 * FIRST_PAUSE_SECONDS
    assert decide(pace, run_of(10)).is_trial


def test_what_is_in_memory_is_loaded_whatever_the_disk_does(clock):
    pace = pace_of(clock, compute=0.001, load=0.01)
    found = run_of(10)
    pace.has_in_memory(found.keys[:3])
    decision = decide(pace, found, in_memory={found.keys[3]})
    assert (decision.chunks, decision.verdict) == (4, Verdict.CUT)
    # It may not be there after all.
    assert decision.within == pytest.approx(0.25 * 4 * CHUNK * 0.001)
    pace.has_in_memory(found.keys)
    assert decide(pace, found).chunks == 10


def test_only_half_of_host_memory_is_counted_on(clock):
    pace = pace_of(clock, compute=0.001, load=0.01)
    pace.remember_up_to(8)
    found = run_of(10)
    pace.has_in_memory(reversed(found.keys))
    assert decide(pace, found).chunks == 4


def test_loads_that_are_under_way_come_first(clock):
    pace = pace_of(clock, compute=0.001, load=0.0005)
    assert decide(pace, run_of(10)).verdict is Verdict.LOAD
    assert decide(pace, run_of(10), ahead=10_000).verdict is Verdict.COMPUTE


def test_behind_others_prefills_a_slow_load_costs_nothing(clock):
    pace = pace_of(clock, compute=0.001, load=0.002)
    assert decide(pace, run_of(10)).verdict is Verdict.COMPUTE
    assert decide(pace, run_of(10), backlog=2 * 640).chunks == 10
    half = decide(pace, run_of(10), backlog=640)
    assert (half.chunks, half.verdict) == (5, Verdict.CUT)


def test_a_local_hit_inside_a_chunk_makes_it_gain_less(clock):
    pace = pace_of(clock, compute=0.001, load=0.0009)
    # The whole chunk is read for one block of it.
    assert decide(pace, run_of(1), first_block=PER_CHUNK - 1).verdict is Verdict.COMPUTE
    assert decide(pace, run_of(1)).verdict is Verdict.LOAD


@pytest.mark.parametrize(("policy", "chunks"), [("always", 10), ("never", 0)])
def test_a_policy_that_is_set_is_kept(clock, policy, chunks):
    for load in (0.0001, 0.01):
        decision = decide(pace_of(clock, compute=0.001, load=load, policy=policy), run_of(10))
        assert (decision.chunks, decision.within) == (chunks, None)


def test_nothing_found_is_nothing_to_decide(clock):
    decision = decide(pace_of(clock, compute=0.001, load=0.0001), Run())
    assert (decision.chunks, decision.compute_seconds) == (0, None)


def test_steps_that_prefill_little_say_nothing(clock):
    pace = pace_of(clock)
    pace.saw_prefill(3, 1.0)
    assert pace.compute_seconds_per_token is None


def test_the_ends_of_prompts_that_were_loaded_say_nothing_of_whole_ones(clock):
    pace = pace_of(clock)
    pace.saw_prefill(8000, 0.3)
    for _ in range(130):
        pace.saw_prefill(120, 0.02)
    assert pace.compute_seconds_per_token == pytest.approx(0.3 / 8000)
    for _ in range(1000):
        pace.saw_prefill(120, 0.02)
    assert pace.compute_seconds_per_token == pytest.approx(0.02 / 120), "there are no others now"


def test_a_decision_over_many_chunks_is_quick(clock):
    # It is made on the scheduler's thread.
    pace = pace_of(clock, compute=0.001, load=0.0001)
    found = Run([index.to_bytes(32, "big") for index in range(512)], 0, 512 * PER_CHUNK, PER_CHUNK)
    pace.remember_up_to(1000)
    pace.has_in_memory(found.keys[::2])
    seen, plain = {-1: None}, list(range(512))
    loop = seconds_per_call(lambda: [index not in seen for index in plain])
    assert seconds_per_call(lambda: decide(pace, found)) < 12 * loop


def decided(pace, chunks, remote=()):
    return pace.decide(
        run_of(chunks), 0, in_memory=(), ahead=0, backlog=0, is_remote=lambda key: key[0] in remote
    )


def test_each_tier_is_judged_by_what_it_has_done(clock):
    pace = pace_of(clock, compute=1e-3, load=1e-4)
    clock.now += LONGEST_PAUSE_SECONDS
    first = decided(pace, 10, remote={3})
    assert first.is_trial
    assert first.is_remote
    pace.began_trial(10 * CHUNK, is_remote=True)
    for tokens in (1000, 2000):
        pace.saw_load(tokens, tokens * 5e-3, trial=True, is_remote=True)
    slow = decided(pace, 10, remote=set(range(10)))
    assert slow.verdict is Verdict.COMPUTE
    assert slow.load_seconds == pytest.approx(10 * CHUNK * 5e-3)
    local = decided(pace, 10)
    assert local.verdict is Verdict.LOAD
    assert not local.is_remote
    assert local.load_seconds == pytest.approx(10 * CHUNK * 1e-4)


def test_one_tier_that_was_given_up_says_nothing_of_the_other(clock):
    pace = pace_of(clock, compute=1e-3, load=1e-4)
    for tokens in (1000, 2000):
        pace.saw_load(tokens, tokens * 1e-4, trial=False, is_remote=True)
    pace.gave_up([bytes(32)], 10 * CHUNK, is_remote=True)
    assert pace.remote_seconds_per_token is None
    assert decided(pace, 10).verdict is Verdict.LOAD
    assert decided(pace, 10, remote=set(range(10))).verdict is Verdict.COMPUTE


def test_what_is_in_memory_needs_no_remote_tier(clock):
    pace = pace_of(clock, compute=1e-3, load=1e-4)
    pace.has_in_memory([bytes([index]) * 32 for index in range(4)])
    assert not decided(pace, 4, remote={0, 1, 2, 3}).is_remote
    assert decided(pace, 5, remote={0, 1, 2, 3}).is_remote is False
    assert decided(pace, 5, remote={4}).is_remote


def test_a_slow_remote_tier_does_not_cost_what_the_directories_have(clock):
    pace = pace_of(clock, compute=1e-3, load=1e-4)
    clock.now += LONGEST_PAUSE_SECONDS
    pace.gave_up([], 10 * CHUNK, is_remote=True)
    cut = decided(pace, 10, remote={8})
    assert (cut.verdict, cut.chunks, cut.is_remote) == (Verdict.CUT, 8, False)
    for tokens in (1000, 2000):
        pace.saw_load(tokens, tokens * 5e-3, trial=False, is_remote=True)
    cut = decided(pace, 10, remote={8})
    assert (cut.verdict, cut.chunks, cut.is_remote) == (Verdict.CUT, 8, False)
    for _ in range(20):
        pace.saw_load(2000, 2000 * 1e-4, trial=False, is_remote=True)
    everything = decided(pace, 10, remote={8})
    assert (everything.chunks, everything.is_remote) == (10, True)
