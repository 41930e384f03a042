"""The converted SmolLM2: the GGUF's weights and vocabulary, and a model that makes sense."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the demo's dependencies are not installed")

from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open
from tokenizers import Tokenizer

from lmkv.demo import gguf_to_hf, model
from lmkv.demo.errors import DemoError

LAYER = 7


@pytest.fixture(scope="module")
def cache_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lmkv-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def smollm2(cache_dir: Path) -> Path:
    return model.prepare_smollm2(cache_dir)


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(model.find_gguf())


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


def gguf_weight(reader: GGUFReader, name: str) -> np.ndarray:
    (tensor,) = (t for t in reader.tensors if t.name == name)
    return dequantize(tensor.data, tensor.tensor_type)


def hf_weight(folder: Path, name: str) -> np.ndarray:
    with safe_open(folder / "model.safetensors", "np") as weights:
        return weights.get_tensor(name)


def rotate(vector: np.ndarray, position: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rotary embedding of one head that turns component first[i] with component second[i]."""
    half = len(vector) // 2
    angle = position * 100_000.0 ** (-np.arange(half) / half)
    turned = vector.copy()
    turned[first] = vector[first] * np.cos(angle) - vector[second] * np.sin(angle)
    turned[second] = vector[second] * np.cos(angle) + vector[first] * np.sin(angle)
    return turned


def test_attention_scores_equal_those_of_the_gguf_rotated_its_own_way(
    smollm2: Path, reader: GGUFReader
) -> None:
    """llama.cpp rotates neighbours, Hugging Face rotates halves: q and k rows must be reordered."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 576)).astype(np.float32)
    neighbours = np.arange(0, 64, 2), np.arange(1, 64, 2)
    halves = np.arange(32), np.arange(32, 64)
    gguf_q, gguf_k = (gguf_weight(reader, f"blk.{LAYER}.attn_{part}.weight") for part in "qk")
    hf_q, hf_k = (
        hf_weight(smollm2, f"model.layers.{LAYER}.self_attn.{part}_proj.weight") for part in "qk"
    )
    for head in range(9):
        q_rows = slice(head * 64, head * 64 + 64)
        k_rows = slice(head // 3 * 64, head // 3 * 64 + 64)
        expected = rotate(gguf_q[q_rows] @ x, 3, *neighbours) @ rotate(
            gguf_k[k_rows] @ y, 17, *neighbours
        )
        actual = rotate(hf_q[q_rows] @ x, 3, *halves) @ rotate(hf_k[k_rows] @ y, 17, *halves)
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_every_other_weight_equals_the_gguf(smollm2: Path, reader: GGUFReader) -> None:
    with safe_open(smollm2 / "model.safetensors", "np") as weights:
        assert len(weights.keys()) == len(reader.tensors) == 272
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 - not a dict
    for gguf_name, hf_name in {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        f"blk.{LAYER}.attn_v": f"model.layers.{LAYER}.self_attn.v_proj",
        f"blk.{LAYER}.ffn_down": f"model.layers.{LAYER}.mlp.down_proj",
        f"blk.{LAYER}.ffn_gate": f"model.layers.{LAYER}.mlp.gate_proj",
        f"blk.{LAYER}.attn_norm": f"model.layers.{LAYER}.input_layernorm",
    }.items():
        np.testing.assert_array_equal(
            gguf_weight(reader, f"{gguf_name}.weight"), hf_weight(smollm2, f"{hf_name}.weight")
        )


def test_config_is_understood_by_transformers(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.AutoConfig.from_pretrained(smollm2)
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    assert rope["rope_theta"] == 100_000.0
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == 8192


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  leading and   inner spaces\n\ttabs\r\n\nand lines  ",
        "In 2026, 1234567890 tokens cost $3.50 (about 10%).",
        "def f(x):\n    return x ** 2  # a comment",
        "Grüße, naïve café; Ελληνικά, русский, 日本語, العربية, हिन्दी",
        "🙂👩‍👩‍👧‍👦 emoji, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 and e\u0301 combining",
        "<|im_start|>user\nhi<|im_end|>\n",
    ],
)
def test_tokenizer_gives_back_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens_and_chat_marks_are_special(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" 2026").tokens == ["Ġ", "2", "0", "2", "6"]
    # Only where digits are split off does the space stay alone.
    assert tokenizer.encode(" ½").tokens == ["Ġ", "Â½"]
    # The ids of SmolLM2's published tokenizer.
    assert tokenizer.encode("<|im_start|>user\nHello<|im_end|>").ids == [1, 4093, 198, 19556, 2]
    assert tokenizer.encode(" the quick brown fox").tokens == ["Ġthe", "Ġquick", "Ġbrown", "Ġfox"]


def test_chat_template_renders_the_roles(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U 12"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU 12<|im_end|>\n<|im_start|>assistant\n"
    )
    own = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(text).ids
    assert tokenizer(text)["input_ids"] == own  # AutoTokenizer kept the pre-tokenizer
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("What is the chemical formula of water?", "H2O"),
    ],
)
def test_it_answers_known_questions(smollm2: Path, question: str, expected: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    network = transformers.LlamaForCausalLM.from_pretrained(smollm2)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = network.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert expected in answer


def test_a_second_call_is_instant(smollm2: Path, cache_dir: Path) -> None:
    start = time.monotonic()
    assert model.prepare_smollm2(cache_dir) == smollm2
    assert time.monotonic() - start < 0.1


def test_two_processes_at_once_leave_one_whole_model(scratch: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(model.prepare_smollm2, [scratch, scratch])
    assert first == second
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert model.prepare_smollm2(scratch) == first


def test_a_cut_off_or_older_model_is_made_again(scratch: Path) -> None:
    folder = model.prepare_smollm2(scratch)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(size // 2)
    assert model.prepare_smollm2(scratch) == folder
    assert weights.stat().st_size == size
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    stamp = json.loads((folder / "lmkv-model.json").read_text())
    (folder / "lmkv-model.json").write_text(json.dumps(stamp | {"converter": 0}))
    model.prepare_smollm2(scratch)
    assert json.loads((folder / "lmkv-model.json").read_text()) == stamp


def test_an_unwritable_cache_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises(DemoError, match="cannot write the model"):
        model.prepare_smollm2(tmp_path)


def test_a_missing_package_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DemoError) as error:
        model.prepare_smollm2(tmp_path)
    assert "pip install" in error.value.hint


def test_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(gguf_to_hf.UnsupportedGGUFError, match=r"output_extra"):
        gguf_to_hf._hf_name("output_extra.weight")
