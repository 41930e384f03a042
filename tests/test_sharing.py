"""Which facts are told as causes; real engines are in ``tests/vllm/test_mis_set_engines.py``."""

from typing import Any

from lmkv.sharing import Side, compare, nearest_pairs

FACTS = {"model": "weights aa", "hf_config": "c", "dtype": "float32", "block_tokens": 16}


def side(name: str, about: dict[str, Any] | None = None, **facts: Any) -> Side:
    return Side(name, {**FACTS, **facts}, about or {})


def causes(ours: Side, theirs: Side) -> list[str]:
    return [cause.fact for cause in compare(ours, theirs).causes]


def test_what_follows_from_a_cause_is_told_apart() -> None:
    pair = compare(side("a", pages=["16"]), side("b", pages=["32"], block_tokens=32))
    assert [cause.fact for cause in pair.causes] == ["block_tokens"]
    assert pair.also == ["pages"]
    assert causes(side("a", pages=["16"]), side("b", pages=["32"])) == ["pages"]


def test_two_causes_are_both_told() -> None:
    assert causes(side("a"), side("b", block_tokens=32, dtype="bfloat16")) == [
        "dtype",
        "block_tokens",
    ]


def test_a_fact_of_a_newer_lmkv_is_told_too() -> None:
    (cause,) = compare(side("a", novel=1), side("b")).causes
    assert (cause.fact, cause.ours, cause.theirs) == ("novel", "1", "not set")


def test_two_numbers_of_the_hash_seed_do_not_follow_from_the_algorithm() -> None:
    one = side("a", hash_algorithm="sha256", hash_seed="1")
    other = side("b", hash_algorithm="xxhash", hash_seed="2")
    private = side("c", hash_algorithm="xxhash", hash_seed="private to engine e")
    assert causes(one, other) == ["hash_algorithm", "hash_seed"]
    assert causes(one, private) == ["hash_algorithm"]


def test_models_of_a_hub_differ_by_name_or_revision() -> None:
    def hub(model: str, revision: str) -> Side:
        fact = f"{model}  revision {revision} commit c"
        return side("a", {"model": model}, model=fact)

    (cause,) = compare(hub("org/m", ""), hub("org/m", "v2")).causes
    assert "--revision" in cause.advice
    (cause,) = compare(hub("org/m", ""), hub("org/n", "")).causes
    assert "--model" in cause.advice
    (cause,) = compare(hub("org/m", ""), side("b", {"model": "/m"})).causes
    assert "both the folder, or both the name" in cause.advice


def test_namespaces_of_one_model_are_joined_by_their_nearest_pairs() -> None:
    sides = [
        side("a", dtype="float32"),
        side("b", dtype="bfloat16", block_tokens=32, chunk_tokens=8),
        side("c", dtype="bfloat16", block_tokens=32),
        side("d", dtype="bfloat16"),
    ]
    found = [(pair.ours.name, pair.theirs.name) for pair in nearest_pairs(sides)]
    assert {frozenset(pair) for pair in found} == {
        frozenset("ad"), frozenset("dc"), frozenset("cb")
    }  # fmt: skip


def test_different_models_are_not_compared() -> None:
    other = side("b", {"model": "/m/two"}, model="weights bb", hf_config="d")
    assert nearest_pairs([side("a", {"model": "/m/one"}), other]) == []
    alike = side("b", {"model": "/n/one/"}, model="weights bb", hf_config="d")
    assert len(nearest_pairs([side("a", {"model": "/m/one"}), alike])) == 1
    assert len(nearest_pairs([side("a"), side("b", {"model": "/x"}, model="weights bb")])) == 1


def test_a_tier_and_a_connector_differ_in_that_alone() -> None:
    ours = Side("a", {"model": "m", "vllm": "0.32", "hf_config": "1"})
    theirs = Side("b", {"model": "m", "vllm": "0.31", "tier": "direct", "layer_groups": ["l"]})
    pair = compare(ours, theirs)
    assert [cause.fact for cause in pair.causes] == ["tier"]
