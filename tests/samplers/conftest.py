"""A tiny random model and a byte-level tokenizer with a few longer tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.drawn_turns import drawn_together
from spanwise.samplers.base import Completion, Request, Sampler
from tests.tiny import qwen3

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
