"""Random models that are small enough for any test."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def tiny_model(vocab: int = 64, *, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Two layers of width 16, with weights large enough that tokens differ."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return in_precision(Qwen3ForCausalLM(config), dtype)


def qwen3(vocab: int = 261, *, heads: int = 4, kv_heads: int = 2, **options: Any) -> Any:
    """Two layers of width 64, of any shape."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.15,
    )
    return Qwen3ForCausalLM(Qwen3Config(**(settings | options))).eval()


def in_precision(model: Any, dtype: torch.dtype) -> Any:
    """The model for evaluation; in float64, with norms that do not round to float32 inside."""
    if dtype == torch.float64:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child).__name__.endswith("RMSNorm"):
                    norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                    norm.weight = child.weight
                    setattr(module, name, norm)
    return model.to(dtype).eval()
