"""Turns a llama GGUF with a byte-level BPE vocabulary into a Hugging Face model directory.

Only what SmolLM2 needs, and every assumption is checked: a GGUF that breaks one raises
`UnsupportedGGUFError` instead of giving a model that talks nonsense.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    Weights = npt.NDArray[np.float32]

_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL

_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class UnsupportedGGUFError(ValueError):
    """The GGUF is not a llama model with a SmolLM tokenizer."""


def convert(source: Path, target: Path) -> None:
    """Writes weights (float32), configuration and tokenizer of `source` into the folder `target`.

    Dequantised values are kept as float32: Q4_1 gives `scale * q + minimum`, whose sum float16
    cannot hold, and float32 is the fast type on CPUs without AMX. Blocks for seconds; raises
    `UnsupportedGGUFError`.
    """
    from gguf import GGUFReader

    reader = GGUFReader(source)
    _check(reader)
    _write_json(target / "config.json", _config(reader))
    _write_json(target / "generation_config.json", _generation_config(reader))
    build_tokenizer(reader).save(str(target / "tokenizer.json"))
    _write_json(target / "tokenizer_config.json", _tokenizer_config(reader))
    _write_weights(reader, target / "model.safetensors")


def field(reader: GGUFReader, name: str, default: Any = None) -> Any:
    """The value of one metadata key; raises `UnsupportedGGUFError` without one and no default."""
    found = reader.get_field(name)
    if found is not None:
        return found.contents()
    if default is not None:
        return default
    raise UnsupportedGGUFError(f"the GGUF has no {name!r}")


def unpermute(rows: Weights, heads: int) -> Weights:
    """Undoes llama.cpp's row order of a q or k projection, shape (heads * head_size, hidden).

    llama.cpp rotates neighbouring pairs of rows, Hugging Face rotates row i with row
    i + head_size / 2, so llama.cpp's converter interleaves the halves of every head
    (`LlamaModel.permute` in its convert_hf_to_gguf.py); this is the inverse.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def build_tokenizer(reader: GGUFReader) -> Tokenizer:
    """The GGUF's vocabulary as a `tokenizers` byte-level BPE with SmolLM's pre-tokenizer.

    SmolLM splits digits one by one before the byte-level split. Its vocabulary lacks 21 byte
    values (most cannot occur in UTF-8; the others are rare control characters), which are
    dropped when encoding, as with the original tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return tokenizer


def _check(reader: GGUFReader) -> None:
    expected = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }
    for name, wanted in expected.items():
        if (actual := field(reader, name)) != wanted:
            raise UnsupportedGGUFError(f"{name} is {actual!r}, not {wanted!r}")
    if any(tensor.name == "output.weight" for tensor in reader.tensors):
        raise UnsupportedGGUFError("the GGUF has its own output matrix; tied embeddings expected")


def _config(reader: GGUFReader) -> dict[str, Any]:
    hidden = field(reader, "llama.embedding_length")
    heads = field(reader, "llama.attention.head_count")
    base = float(field(reader, "llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "max_position_embeddings": field(reader, "llama.context_length"),
        # The GGUF holds the float32 nearest to a round decimal (1e-5); give back the decimal.
        "rms_norm_eps": float(f"{field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        # transformers 5 reads rope_parameters, transformers 4 reads rope_theta.
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "rope_theta": base,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_special_ids(reader),
    }


def _special_ids(reader: GGUFReader) -> dict[str, int]:
    eos = field(reader, "tokenizer.ggml.eos_token_id")
    return {
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id", eos),
    }


def _generation_config(reader: GGUFReader) -> dict[str, Any]:
    return {"_from_model_config": True, **_special_ids(reader)}


def _tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens = field(reader, "tokenizer.ggml.tokens")
    names = {key.replace("_id", ""): tokens[index] for key, index in _special_ids(reader).items()}
    return {
        # The generic class: the GPT-2 one would replace the pre-tokenizer with its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": field(reader, "llama.context_length"),
        "chat_template": field(reader, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "unk_token": tokens[0],
        **names,
    }


def _write_weights(reader: GGUFReader, target: Path) -> None:
    import numpy as np
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    heads = {
        "attn_q": field(reader, "llama.attention.head_count"),
        "attn_k": field(reader, "llama.attention.head_count_kv"),
    }
    weights: dict[str, Weights] = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in heads:
            values = unpermute(values, heads[part])
        weights[_hf_name(tensor.name)] = np.ascontiguousarray(values)
    save_file(weights, target, metadata={"format": "pt"})


def _hf_name(name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    try:
        _, layer, part, kind = name.split(".")
        return f"model.layers.{int(layer)}.{_LAYER_NAMES[part]}.{kind}"
    except (KeyError, ValueError):
        raise UnsupportedGGUFError(f"unexpected tensor {name!r}") from None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
