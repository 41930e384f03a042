"""Tiny models with random weights, of kinds whose real ones take gigabytes.

The weights are large enough, and attention sharp enough, that every layer has a say in an answer.
"""

from pathlib import Path

VOCABULARY = 512


def save_gemma3(directory: Path, window: int) -> Path:
    """As Gemma 3: layers with a sliding window, and few with full attention. VLLM makes four groups
    of them, of two layers each but for the last.
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = [*["sliding_attention", "sliding_attention", "full_attention"] * 2, "sliding_attention"]
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=len(kinds),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        sliding_window=window,
        layer_types=kinds,
        query_pre_attn_scalar=32,
        tie_word_embeddings=True,
    )
    return _save(Gemma3ForCausalLM, config, directory)


def save_lfm2(directory: Path) -> Path:
    """As LFM2: convolutions whose state vLLM keeps as it does a state space model's, and layers
    with full attention.
    """
    from transformers import Lfm2Config, Lfm2ForCausalLM

    # VLLM reads two of the names that the real one has besides.
    config = Lfm2Config(
        conv_dim=64,
        block_dim=64,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        layer_types=["conv", "full_attention"] * 2,
        block_auto_adjust_ff_dim=False,
    )
    return _save(Lfm2ForCausalLM, config, directory)


def _save(model_class, config, directory: Path) -> Path:
    import torch

    torch.manual_seed(1)
    model = model_class(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_norm" in name or "k_norm" in name:
                parameter.fill_(1.0)
            elif "post_feedforward_layernorm" in name:
                parameter.fill_(-0.8)
            elif parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    return directory
