"""A tiny random model and a byte-level tokenizer with a few longer tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from bench.drawn_turns import drawn_together
from spanwise.samplers.base import Completion, Request, Sampler

EOS = 0


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """256 single bytes, and what the merges make of them: ``</``, ``s>``, ``>x``, ``ab``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), ("s", ">"), (">", "x"), ("a", "b")]
    names = ["<eos>", *alphabet, *("".join(m) for m in merges)]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    assert fast.eos_token_id == EOS
    return fast


def qwen3(vocab: int = 261, *, heads: int = 4, kv_heads: int = 2, **options: Any) -> Any:
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


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return qwen3


@pytest.fixture
def model() -> Any:
    return qwen3()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def together() -> Callable[[Sampler, list[Request]], list[Completion]]:
    return drawn_together
