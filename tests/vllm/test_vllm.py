from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.drawn_turns import first_turns, forward_logprobs
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.models.loading import Model
from spanwise.models.lora import LoRA, trained_parameters
from spanwise.samplers.base import Completion, EngineError, Request, Sampler, Sampling
from spanwise.samplers.stops import decoded
from spanwise.testing import check_sampler

pytestmark = pytest.mark.vllm

Together = Callable[[Sampler, list[Request]], list[Completion]]


def test_greedy_turns_are_those_of_transformers(
    vllm: Sampler, transformers: Sampler, base: tuple[Any, Any], together: Together
) -> None:
    asked = first_turns(base[1], 200, Sampling(temperature=0.0))
    assert len({r.prompt for r in asked}) == 200
    ours, theirs = together(transformers, asked), together(vllm, asked)
    assert [c.tokens for c in theirs] == [c.tokens for c in ours]
    assert [c.finish for c in theirs] == [c.finish for c in ours]
    assert {c.finish for c in theirs} >= {"stop"}


def test_logprobs_are_those_of_the_model(
    vllm: Sampler, base: tuple[Any, Any], together: Together
) -> None:
    model, tokenizer = base
    asked = first_turns(tokenizer, 40, Sampling())
    for request, completion in zip(asked, together(vllm, asked), strict=True):
        expected = forward_logprobs(model, request, completion)
        assert completion.engine_logprobs == pytest.approx(expected, abs=1e-3)
        assert completion.sampling_logprobs == completion.engine_logprobs


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.6, top_p=0.9), Sampling(temperature=1.3, top_k=5)]
)
def test_tempered_draws_report_both_logprobs(
    vllm: Sampler, base: tuple[Any, Any], together: Together, sampling: Sampling
) -> None:
    model, tokenizer = base
    asked = first_turns(tokenizer, 8, sampling, max_tokens=8)
    for request, completion in zip(asked, together(vllm, asked), strict=True):
        assert completion.engine_logprobs == pytest.approx(
            forward_logprobs(model, request, completion), abs=1e-3
        )
        context = torch.tensor([[*request.prompt, *completion.tokens]])
        with torch.inference_mode():
            logits = model(input_ids=context).logits[0].double() / sampling.temperature
        for i, token in enumerate(completion.tokens):
            weights, order = logits[len(request.prompt) - 1 + i].softmax(-1).sort(descending=True)
            size = sampling.top_k or len(weights)
            weights = weights[:size] / weights[:size].sum()
            size = int((weights.cumsum(0) - weights < sampling.top_p).sum())
            kept = dict(zip(order[:size].tolist(), weights[:size].tolist(), strict=True))
            expected = torch.tensor(kept[token] / sum(kept.values())).log().item()
            assert completion.sampling_logprobs[i] == pytest.approx(expected, abs=2e-3)


def test_it_is_a_sampler(vllm: Sampler, base: tuple[Any, Any]) -> None:
    """The seeds rule with it: alone, in company and in reverse, a request gives one turn."""
    tokenizer = base[1]
    prompts = [r.prompt for r in first_turns(tokenizer, 3, Sampling())]
    stop = MultiHopSearch().stop_strings
    check_sampler(
        vllm,
        prompts=prompts,
        max_tokens=24,
        stop=stop,
        decode=lambda tokens: decoded(tokenizer, tokens),
    )


def test_new_weights_are_sampled_from_and_nothing_cached_is_used(
    vllm: Sampler, base: tuple[Any, Any], together: Together
) -> None:
    model, tokenizer = base
    asked = first_turns(tokenizer, 6, Sampling())
    before = together(vllm, asked)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.0 + 0.1 * torch.randn(parameter.shape[-1:]))
    vllm.update_weights(changed)
    try:
        after = together(vllm, asked)
        for request, completion in zip(asked, after, strict=True):
            expected = forward_logprobs(changed, request, completion)
            assert completion.engine_logprobs == pytest.approx(expected, abs=1e-3)
        assert [c.engine_logprobs for c in after] != [c.engine_logprobs for c in before]
    finally:
        vllm.update_weights(model)
    again = together(vllm, asked)
    assert [c.tokens for c in again] == [c.tokens for c in before]


def test_an_adapter_is_sampled_from(
    vllm: Sampler, base: tuple[Any, Any], together: Together
) -> None:
    adapted = Model(device="cpu", lora=LoRA(rank=4)).load()
    with torch.no_grad():
        for parameter in trained_parameters(adapted):
            parameter.normal_(std=0.1)
    asked = first_turns(base[1], 6, Sampling())
    before = together(vllm, asked)
    vllm.update_weights(adapted)
    try:
        after = together(vllm, asked)
    finally:
        vllm.update_weights(base[0])
    for request, completion in zip(asked, after, strict=True):
        expected = forward_logprobs(adapted, request, completion)
        assert completion.engine_logprobs == pytest.approx(expected, abs=1e-3)
    assert [c.engine_logprobs for c in after] != [c.engine_logprobs for c in before]


def test_what_cannot_be_sampled_is_an_engine_error(vllm: Sampler) -> None:
    for prompt in ((), (10**6,), (1,) * 600):
        with pytest.raises(EngineError):
            asyncio.run(vllm.sample(Request(prompt=prompt, seed=0, max_tokens=4)))


def test_a_turn_ends_where_the_model_has_no_more_positions(
    vllm: Sampler, transformers: Sampler, together: Together
) -> None:
    ask = Request(prompt=(5,) * 508, seed=0, max_tokens=30, sampling=Sampling(temperature=0.0))
    ours, theirs = together(transformers, [ask]), together(vllm, [ask])
    assert len(theirs[0].tokens) == 4 and theirs[0].tokens == ours[0].tokens
    assert theirs[0].finish == "length"
