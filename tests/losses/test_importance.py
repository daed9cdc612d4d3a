"""Importance ratios against the formula in plain float64, and gradients against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise import spans
from spanwise.losses import (
    clipped_surrogate,
    importance_ratio,
    importance_weights,
    within_bound,
)

PARTITIONS = {"token": spans.by_token, "turn": spans.by_turn, "whole": spans.whole}


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(sorted(PARTITIONS)))
def test_ratios_weights_and_bounds_follow_the_formula(seed: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, drawn = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) - 2
    mask = torch.rand(3, 7, generator=generator) < 0.7
    partition = PARTITIONS[kind](mask)
    dirty = torch.where(mask, drawn, torch.nan)  # what stands at masked places is not read
    ratio = importance_ratio(torch.where(mask, policy, torch.inf), dirty, partition)
    weights = importance_weights(policy, dirty, partition, truncate=1.5)
    kept = within_bound(policy, dirty, partition, bound=1.5)
    for i in range(3):
        for t in range(7):
            here = [s for s in range(7) if mask[i, t] and partition[i, s] == partition[i, t]]
            expected = math.exp(sum(float(policy[i, s] - drawn[i, s]) for s in here))
            assert float(ratio[i, t]) == pytest.approx(expected, rel=1e-12)
            assert float(weights[i, t]) == pytest.approx(min(expected, 1.5), rel=1e-12)
            assert bool(kept[i, t]) == (bool(mask[i, t]) and 1 / 1.5 <= expected <= 1.5)


def test_they_stay_finite_and_carry_no_gradient() -> None:
    policy = torch.tensor([[-1.0, -700.0]], requires_grad=True)
    ratio = importance_ratio(policy, torch.tensor([[-900.0, -1.0]]), torch.tensor([[0, 1]]))
    assert ratio.tolist() == [[pytest.approx(math.exp(20)), pytest.approx(math.exp(-20))]]
    assert not ratio.requires_grad


def test_a_bound_of_infinity_keeps_all_and_bounds_are_checked() -> None:
    far, spans_of = torch.tensor([[0.0, -300.0]]), torch.tensor([[0, 1]])
    assert within_bound(far, far.flip(1), spans_of, bound=math.inf).all()
    assert within_bound(far, far * torch.nan, spans_of, bound=math.inf).all()
    assert not within_bound(far, far * torch.nan, spans_of, bound=2.0).any()
    with pytest.raises(ValueError, match="at least 1"):
        within_bound(far, far, spans_of, bound=0.5)
    with pytest.raises(ValueError, match="above 0"):
        importance_weights(far, far, spans_of, truncate=0.0)


def enumerated(num_actions: int = 3) -> tuple[torch.Tensor, ...]:
    """A policy over pairs of actions, an engine with disturbed logits, and a reward."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(num_actions, generator=generator, dtype=torch.float64)
    second = torch.randn(num_actions, num_actions, generator=generator, dtype=torch.float64)
    policy = torch.cat([first[None], second]).requires_grad_()
    noise = 0.7 * torch.randn(policy.shape, generator=generator, dtype=torch.float64)
    rewards = torch.randn(num_actions**2, generator=generator, dtype=torch.float64)
    return policy, policy.detach() + noise, rewards


def pair_logprobs(logits: torch.Tensor) -> torch.Tensor:
    """``[9, 2]``: of the first action, and of the second after it."""
    table = logits.log_softmax(-1)
    pairs = itertools.product(range(logits.shape[1]), repeat=2)
    return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in pairs])


def expected_gradient(span: str | None, truncate: float = 1e9) -> torch.Tensor:
    """Of the loss, over all that the disturbed engine may draw."""
    policy, engine, rewards = enumerated()
    logprobs, drawn = pair_logprobs(policy), pair_logprobs(engine)
    mask = torch.ones(9, 2, dtype=torch.bool)
    credit = rewards[:, None].expand(9, 2)
    losses, _ = clipped_surrogate(
        logprobs, logprobs.detach(), credit, spans.by_token(mask), clip_low=0.2, clip_high=0.2
    )
    if span is not None:
        at = PARTITIONS[span](mask)
        losses = losses * importance_weights(logprobs, drawn, at, truncate=truncate)
    return torch.autograd.grad((drawn.sum(1).exp()[:, None] * losses).sum(), policy)[0]


def test_on_a_disturbed_engine_only_the_weighted_gradient_is_unbiased() -> None:
    policy, _, rewards = enumerated()
    value = (pair_logprobs(policy).sum(1).exp() * rewards).sum()
    exact = -torch.autograd.grad(value, policy)[0]

    def bias(span: str | None, truncate: float = 1e9) -> float:
        return float((expected_gradient(span, truncate) - exact).norm() / exact.norm())

    torch.testing.assert_close(expected_gradient("whole"), exact, rtol=0, atol=1e-12)
    assert bias(None) > 0.2
    assert bias("token") > 0.01  # how the first action came about is not made up for
    assert 1e-12 < bias("whole", 2.0) < bias(None)
