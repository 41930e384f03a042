"""A Llama of a few hundred kilobytes with random weights, for engines whose steps take little."""

from __future__ import annotations

import os
from pathlib import Path

VOCABULARY = 512
MAX_TOKENS = 4096


def save_tiny_llama(directory: Path) -> Path:
    """Save it there. Its attention is sharp enough that an answer depends on all of its prompt."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the least that vLLM's attention on CPUs takes
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                sharp = 3.0 if "q_proj" in name or "k_proj" in name else 1.0
                torch.nn.init.normal_(parameter, std=sharp * parameter.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    return directory
