"""Real engines with models that have several KV cache groups, tiny and random.

A fresh engine over the directory of another answers as one without lmkv does, and computes next to
nothing for it.
"""

import pytest
from engine_process import BLOCK, Engine
from tiny_models import VOCABULARY, save_gemma3, save_lfm2

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

CHUNK = 256
PROMPT = [(7 * i * i + 3 * i) % (VOCABULARY - 8) + 8 for i in range(5 * CHUNK + 3 * BLOCK + 9)]
LOADED = (len(PROMPT) - 1) // BLOCK * BLOCK
# Another end, behind chunks of the same prompt.
OTHER = PROMPT[: 3 * CHUNK] + PROMPT[:40]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {
        "a window within a chunk": save_gemma3(directory / "narrow", window=80),
        "states": save_lfm2(directory / "states"),
    }


@pytest.fixture
def engine(models, tmp_path):
    def make(kind, name, **arguments):
        return Engine(
            models[kind],
            tmp_path / "cache",
            tmp_path / f"{name}.log",
            {"load_policy": "always"},
            skip_tokenizer_init=True,
            # Steps end within chunks. All engines have the same: where a step ends is in the last
            # bits of what vLLM computes, and now and then in an answer.
            max_num_batched_tokens=1000,
            **arguments,
        )

    return make


KINDS = ["a window within a chunk", "states"]  # a window of chunks: test_groups.py


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_engine_answers_as_a_plain_one_from_anothers_kv(engine, kind, tmp_path):
    with engine(kind, "plain", kv_transfer_config=None) as plain:
        answers = [plain.generate(prompt)["tokens"] for prompt in (PROMPT, OTHER)]
    assert answers[0] != answers[1], "the answer depends on the prompt"
    with engine(kind, "first") as first:
        cold = first.generate(PROMPT)
        digests = first.ask("kv", prompt=PROMPT)
    assert cold["tokens"] == answers[0]
    assert "tokens_loaded" not in cold["counters"]
    with engine(kind, "second") as second:
        warm = second.generate(PROMPT)
        assert warm["tokens"] == answers[0]
        assert warm["counters"]["tokens_loaded"] == LOADED
        assert warm["cached"] == LOADED
        assert "chunks_stored" not in warm["counters"]
        # What the first group, of windows or states, was given is the other engine's to the byte.
        loaded = second.ask("kv", prompt=PROMPT)
        assert loaded
        assert loaded == digests[-len(loaded) :]
        assert second.ask("forget")
        assert second.generate(OTHER)["tokens"] == answers[1]
    assert "nothing is stored or loaded" not in (tmp_path / "second.log").read_text()


def test_a_model_whose_states_are_not_kept_is_served_untouched_with_one_line(engine, tmp_path):
    with engine("states", "untouched", enable_prefix_caching=False) as untouched:
        said = untouched.generate(PROMPT)
        assert len(said["tokens"]) > 0
        assert "chunks_stored" not in said["counters"]
    log = (tmp_path / "untouched.log").read_text()
    assert log.count("lmkv: nothing is stored or loaded: ") == 1
    assert not list((tmp_path / "cache").glob("v1/*/r0/*/*.kv"))
