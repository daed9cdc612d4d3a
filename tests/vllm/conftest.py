"""The search base model through vLLM; these tests run in an environment that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.drawn_turns import drawn_together
from spanwise.models.loading import Model
from spanwise.samplers.base import Completion, Request, Sampler
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.samplers.vllm.local import VLLMEngine


@pytest.fixture(scope="session")
def base() -> tuple[Any, Any]:
    """The search base model in float32, and its tokenizer."""
    return Model(device="cpu").load(), Model().load_tokenizer()


@pytest.fixture(scope="session")
def vllm(base: tuple[Any, Any]) -> Iterator[Sampler]:
    sampler = VLLMEngine(compiled=False).build(*base)
    yield sampler
    sampler.close()


@pytest.fixture
def transformers(base: tuple[Any, Any]) -> Sampler:
    return TransformersEngine().build(*base)


@pytest.fixture(scope="session")
def together() -> Callable[[Sampler, list[Request]], list[Completion]]:
    return drawn_together
