"""Real vLLM engines over two directories, of which one fails while an engine runs."""

import pytest
from engine_process import BLOCK, PACKAGE, Engine

PROMPT_TOKENS = 1200
CHUNK = 2 * BLOCK

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model():
    from lmkv.demo.model import prepare_smollm2

    return prepare_smollm2()


@pytest.fixture(scope="module")
def prompts(model):
    """Two prompts of a real text with no common prefix."""
    from tokenizers import Tokenizer

    text = (PACKAGE / "lmkv" / "demo" / "documents" / "guide.md").read_text()
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    return [ids[:PROMPT_TOKENS], ids[5 : PROMPT_TOKENS + 5]]


def test_chunks_of_two_directories_and_what_a_failing_one_changes(model, prompts, tmp_path):
    roots = [tmp_path / "a", tmp_path / "b"]
    extra = {"path": [str(root) for root in roots], "chunk_tokens": CHUNK}
    with Engine(model, None, tmp_path / "first.log", extra) as engine:
        cold = [engine.generate(prompt) for prompt in prompts]
        digests = engine.ask("kv", prompt=prompts[0])
    in_each = [len(list(root.glob("v1/*/r0/*/*.kv"))) for root in roots]
    assert min(in_each) > 3
    assert sum(in_each) == sum(one["counters"]["chunks_stored"] for one in cold)

    with Engine(model, None, tmp_path / "second.log", extra) as engine:
        hit = engine.generate(prompts[0])
        loaded = (PROMPT_TOKENS - 1) // BLOCK * BLOCK
        assert hit["counters"]["tokens_loaded"] == loaded
        assert hit["tokens"] == cold[0]["tokens"]
        assert engine.ask("kv", prompt=prompts[0])[: loaded // BLOCK] == digests[: loaded // BLOCK]

        roots[1].rename(tmp_path / "away")
        roots[1].symlink_to(roots[1])  # ELOOP for whatever is below
        assert engine.ask("forget")
        again, other = (engine.generate(prompt) for prompt in prompts)
        # What was just loaded is still in host memory; the other prompt never was.
        assert again["tokens"] == cold[0]["tokens"]
        assert other["tokens"] == cold[1]["tokens"]
        assert other["counters"].get("tokens_loaded", 0) < loaded
    said = (tmp_path / "second.log").read_text()
    assert f"lmkv: rank 0: {roots[1]} is out of service for stores: " in said
