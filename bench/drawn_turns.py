"""Turns of the search base model, for tests and measurements of engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from spanwise.envs.search.environment import MultiHopSearch
from spanwise.rollout.tree_builder import prompt_tokens
from spanwise.samplers.base import Completion, Request, Sampler, Sampling


def first_turns(
    tokenizer: Any, count: int, sampling: Sampling, max_tokens: int = 48
) -> list[Request]:
    """The first turn of held-out questions, each with a seed of its own."""
    env = MultiHopSearch()
    return [
        Request(
            prompt=prompt_tokens(tokenizer, env, task),
            seed=seed,
            max_tokens=max_tokens,
            stop=env.stop_strings,
            sampling=sampling,
        )
        for seed, task in enumerate(env.tasks("test")[:count])
    ]


def drawn_together(sampler: Sampler, requests: Sequence[Request]) -> list[Completion]:
    """All at once, in an event loop of their own."""

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(*(sampler.sample(r) for r in requests))

    return asyncio.run(all_of_them())


def forward_logprobs(model: Any, request: Request, completion: Completion) -> list[float]:
    """Of the turn's tokens, by one plain forward pass."""
    tokens = torch.tensor([[*request.prompt, *completion.tokens]])
    with torch.inference_mode():
        logprobs = model(input_ids=tokens).logits[0].log_softmax(-1)
    first = len(request.prompt) - 1
    return [logprobs[first + i, t].item() for i, t in enumerate(completion.tokens)]
