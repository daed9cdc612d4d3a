"""Credit and loss together, against the exact gradient of a policy small enough to enumerate.

Two actions, three steps: eight sequences, each with a reward of its own. Every sequence is a
row, weighted by its probability, so that a sum over rows is the expectation.
"""

import itertools

import pytest
import torch

from spanwise import spans
from spanwise.advantages import (
    centred_advantages,
    leave_one_out_advantages,
    span_advantages,
    to_tokens,
)
from spanwise.losses import clipped_surrogate, span_ratio, token_gradient_ratio

SEQUENCES = list(itertools.product((0, 1), repeat=3))
PREFIXES = [p for n in range(3) for p in itertools.product((0, 1), repeat=n)]
REWARDS = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0, 0.7, -1.0, 0.4], dtype=torch.float64)
ALL = torch.ones(8, 3, dtype=torch.bool)
SPANS = {
    "token": spans.by_token(ALL),
    "two and one": torch.tensor([[0, 0, 1]]).expand(8, 3),
    "whole": spans.whole(ALL),
}


def policy():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(7, 2, generator=generator, dtype=torch.float64).requires_grad_()


def token_logprobs(logits):
    """``[8, 3]``: log-probs of the tokens of every sequence."""
    table = logits.log_softmax(1)
    rows = [torch.stack([table[PREFIXES.index(s[:t]), s[t]] for t in range(3)]) for s in SEQUENCES]
    return torch.stack(rows)


def exact_gradient(logits):
    expected = (token_logprobs(logits).sum(1).exp() * REWARDS).sum()
    return torch.autograd.grad(expected, logits)[0]


def exact_values(probabilities):
    """``[8, 3]``: the expected reward before each token, given the tokens before it."""
    values = torch.zeros(8, 3, dtype=torch.float64)
    for i, sequence in enumerate(SEQUENCES):
        for t in range(3):
            alike = [j for j, other in enumerate(SEQUENCES) if other[:t] == sequence[:t]]
            values[i, t] = (probabilities[alike] * REWARDS[alike]).sum() / probabilities[
                alike
            ].sum()
    return values


def loss_gradient(logits, advantages, ratio_spans, ratio):
    logprobs = token_logprobs(logits)
    losses, _ = clipped_surrogate(
        logprobs, logprobs.detach(), advantages, ratio_spans, clip_low=0.1, clip_high=0.1,
        ratio=ratio,
    )  # fmt: skip
    weights = logprobs.detach().sum(1).exp()
    return torch.autograd.grad((weights * losses.sum(1)).sum(), logits)[0]


@pytest.mark.parametrize("ratio", [span_ratio, token_gradient_ratio])
@pytest.mark.parametrize("ratio_spans", SPANS.values(), ids=SPANS)
def test_the_outcome_as_credit_gives_the_exact_gradient(ratio, ratio_spans):
    logits = policy()
    advantages = REWARDS[:, None].expand(8, 3)
    got = loss_gradient(logits, advantages, ratio_spans, ratio)
    torch.testing.assert_close(got, -exact_gradient(logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("credit_spans", SPANS.values(), ids=SPANS)
def test_with_the_exact_value_every_span_and_lam_is_unbiased(credit_spans, lam):
    logits = policy()
    values = exact_values(token_logprobs(logits).detach().sum(1).exp())
    rewards = torch.zeros(8, 3, dtype=torch.float64)
    rewards[:, 2] = REWARDS
    advantages = span_advantages(rewards, values, credit_spans, lam=lam)
    got = loss_gradient(logits, advantages, SPANS["token"], token_gradient_ratio)
    torch.testing.assert_close(got, -exact_gradient(logits), rtol=0, atol=1e-12)


def test_with_a_wrong_value_only_monte_carlo_is_unbiased():
    logits = policy()
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, generator=generator, dtype=torch.float64)
    values = torch.tensor([[table[PREFIXES.index(s[:t])] for t in range(3)] for s in SEQUENCES])
    rewards = torch.zeros(8, 3, dtype=torch.float64)
    rewards[:, 2] = REWARDS
    errors = {}
    for name, partition in SPANS.items():
        advantages = span_advantages(rewards, values.double(), partition, lam=0.5)
        got = loss_gradient(logits, advantages, SPANS["token"], token_gradient_ratio)
        errors[name] = (got + exact_gradient(logits)).norm().item()
    assert errors["whole"] < 1e-12
    # A value that is trusted at fewer boundaries does less harm.
    assert errors["token"] > errors["two and one"] > 0.01


@pytest.mark.parametrize(
    ("baseline", "share"), [(leave_one_out_advantages, 1.0), (centred_advantages, 2 / 3)]
)
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_it(baseline, share):
    """Over all groups of three sequences: RLOO is exact, Dr. GRPO (n - 1) / n of it."""
    logits = policy()
    logprobs = token_logprobs(logits)
    probabilities = logprobs.detach().sum(1).exp()
    total = torch.zeros(8, dtype=torch.float64)
    for group in itertools.product(range(8), repeat=3):
        members = torch.tensor(group)
        advantages = baseline(REWARDS[members], torch.zeros(3, dtype=torch.int64))
        total.index_add_(0, members, probabilities[members].prod() * advantages / 3)
    # What is left for a sequence is its probability times its expected advantage.
    advantages = to_tokens(total / probabilities, ALL)
    got = loss_gradient(logits, advantages, SPANS["whole"], token_gradient_ratio)
    torch.testing.assert_close(got, -share * exact_gradient(logits), rtol=0, atol=1e-12)
