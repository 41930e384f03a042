"""What workers say at start: whether it goes together, and which directories are out."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lmkv.config import Config
from lmkv.vllm.handshake import Handshake
from lmkv.vllm.metadata import Hello, RootsOut

CONFIG = Config(path=("/kv",))
ONE, OTHER = b"1" * 32, b"2" * 32


def shaken(*hellos: Hello) -> Handshake:
    handshake = Handshake(CONFIG, len(hellos))
    handshake.greet(dict(enumerate(hellos)))
    return handshake


def test_it_is_complete_when_every_rank_has_said_hello():
    handshake = Handshake(CONFIG, 2)
    handshake.greet({1: Hello(ONE, CONFIG)})
    assert not handshake.is_complete
    handshake.greet({0: Hello(ONE, CONFIG)})
    assert handshake.is_complete
    assert handshake.problem == ""
    assert handshake.namespace == ONE


def test_settings_that_differ_come_before_all_else():
    other = Config(path=("/kv",), chunk_tokens=2 * CONFIG.chunk_tokens)
    problem = shaken(Hello(ONE, CONFIG, "no"), Hello(OTHER, other, "nor I")).problem
    assert problem.startswith("a worker's settings differ from the scheduler's (rank 1 has ")
    assert "chunk_tokens" in problem


def test_each_refusal_is_told_once():
    hellos = [Hello(b"", CONFIG, why) for why in ("this", "that", "this")]
    assert shaken(*hellos, Hello(ONE, CONFIG)).problem == "that; this"


def test_ranks_of_different_kv_do_not_go_together():
    assert (
        "differ in what their KV is made of"
        in shaken(Hello(ONE, CONFIG), Hello(OTHER, CONFIG)).problem
    )


def test_the_fewest_slabs_of_a_rank_and_what_any_cannot_use():
    handshake = shaken(
        Hello(ONE, CONFIG, roots_out=RootsOut(frozenset({0}), frozenset()), slabs=9),
        Hello(ONE, CONFIG, roots_out=RootsOut(frozenset({1}), frozenset({2})), slabs=4),
    )
    assert handshake.slabs == 4
    assert handshake.roots_out() == RootsOut(frozenset({0, 1}), frozenset({2}))
    handshake.note_roots({1: RootsOut()})
    assert handshake.roots_out() == RootsOut(frozenset({0}), frozenset())
