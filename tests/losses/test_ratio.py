"""Span ratios: values from a loop, gradients from finite differences, limits, dirty padding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise import spans
from spanwise.losses import span_ratio, token_gradient_ratio

RATIOS = [span_ratio, token_gradient_ratio]


@st.composite
def batches(draw):
    """``(logprobs, old_logprobs, spans)`` with random masks and spans, in float64."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def uniform():
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    mask = uniform() < draw(st.sampled_from([0.5, 1.0]))
    partition = spans.by_probability(uniform().log(), mask, threshold=0.4)
    return -3 * uniform(), -3 * uniform(), partition


def loop_ratio(logprobs, old, partition):
    result = torch.ones_like(logprobs)
    for i in range(len(partition)):
        for k in range(int(partition[i].max()) + 1):
            tokens = [t for t in range(partition.shape[1]) if partition[i, t] == k]
            mean = sum(float(logprobs[i, t] - old[i, t]) for t in tokens) / len(tokens)
            for t in tokens:
                result[i, t] = math.exp(min(mean, 20.0))
    return result


@pytest.mark.parametrize("ratio", RATIOS)
@given(batch=batches())
def test_equals_the_loop(ratio, batch):
    torch.testing.assert_close(ratio(*batch), loop_ratio(*batch), rtol=1e-12, atol=0)


@pytest.mark.parametrize("ratio", RATIOS)
@given(batch=batches())
def test_limits_are_gspo_and_ppo(ratio, batch):
    logprobs, old, partition = batch
    mask = partition >= 0
    log_ratio = torch.where(mask, logprobs - old, 0)
    ppo = ratio(logprobs, old, spans.by_token(mask))
    torch.testing.assert_close(ppo, log_ratio.exp(), rtol=1e-12, atol=0)
    sequence = (log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()
    gspo = ratio(logprobs, old, spans.whole(mask))
    expected = torch.where(mask, sequence, 1)
    torch.testing.assert_close(gspo, expected, rtol=1e-12, atol=0)
    # One turn is the whole row: nothing between its first and last model token is masked.
    one_turn = (torch.arange(mask.shape[1]) >= 1).expand_as(mask)
    assert torch.equal(
        ratio(logprobs, old, spans.by_turn(one_turn)), ratio(logprobs, old, spans.whole(one_turn))
    )


def finite_differences(function, x, step=1e-6):
    gradient = torch.zeros_like(x)
    for place in range(x.numel()):
        moved = torch.zeros_like(x)
        moved.view(-1)[place] = step
        gradient.view(-1)[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return gradient


@given(batch=batches(), seed=st.integers(0, 99))
def test_span_ratio_gradient_is_that_of_its_value(batch, seed):
    logprobs, old, partition = batch
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(logprobs.shape, generator=generator, dtype=torch.float64)

    def total(x):
        return (weights * span_ratio(x, old, partition)).sum()

    x = logprobs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(gradient, finite_differences(total, logprobs), rtol=0, atol=1e-7)


@given(batch=batches(), seed=st.integers(0, 99))
def test_token_gradient_is_that_of_the_token_alone(batch, seed):
    """d/d logp_t of s_k * exp(logp_t - const), with s_k held: finite differences, per token."""
    logprobs, old, partition = batch
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(logprobs.shape, generator=generator, dtype=torch.float64)
    held = loop_ratio(logprobs, old, partition)

    def total(x):
        return (weights * torch.where(partition >= 0, held * (x - logprobs).exp(), 1)).sum()

    x = logprobs.clone().requires_grad_()
    loss = (weights * token_gradient_ratio(x, old, partition)).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, finite_differences(total, logprobs), rtol=0, atol=1e-7)


def test_both_gradients_by_hand():
    # Log-ratios ln 2 and ln 8: mean ln 4, ratio 4. Weights (advantages) 1 and 3 on the tokens.
    old = torch.zeros(1, 2, dtype=torch.float64)
    x = torch.tensor([[2.0, 8.0]], dtype=torch.float64).log().requires_grad_()
    weights = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    one_span = torch.tensor([[0, 0]])
    got = torch.autograd.grad((weights * token_gradient_ratio(x, old, one_span)).sum(), x)[0]
    torch.testing.assert_close(got, 4 * weights)  # each token its own
    got = torch.autograd.grad((weights * span_ratio(x, old, one_span)).sum(), x)[0]
    torch.testing.assert_close(got, torch.full_like(x, 8))  # 4 * (1 + 3) / 2 for both


@pytest.mark.parametrize("ratio", RATIOS)
def test_log_ratio_is_capped_and_the_gradient_is_then_that_of_the_cap(ratio):
    x = torch.tensor([[90.0, 11.0, -30.0]], requires_grad=True)
    got = ratio(x, torch.zeros(1, 3), torch.tensor([[0, 1, 2]]))
    expected = torch.tensor([[20.0, 11.0, -30.0]]).exp()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], expected)
    # It is the mean that is capped: two tokens at 30 and -30 stay at ratio 1.
    pair = torch.tensor([[30.0, -30.0]])
    assert ratio(pair, pair * 0, torch.tensor([[0, 0]])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dirt", [math.nan, -math.inf, math.inf])
def test_masked_places_have_ratio_1_and_no_gradient(ratio, dirt):
    mask = torch.tensor([[True, False, True, False], [False, False, False, False]])
    x = torch.where(mask, -1.0, dirt).requires_grad_()
    got = ratio(x, torch.where(mask, -2.0, dirt), spans.by_turn(mask))
    assert (got[~mask] == 1).all()
    gradient = torch.autograd.grad(got.sum(), x)[0]
    torch.testing.assert_close(gradient, torch.where(mask, math.e, 0.0))


@pytest.mark.parametrize("ratio", RATIOS)
def test_old_log_probs_are_not_differentiated(ratio):
    old = torch.zeros(1, 3, requires_grad=True)
    assert not ratio(torch.zeros(1, 3), old, torch.tensor([[0, 0, 1]])).requires_grad


@pytest.mark.parametrize("ratio", RATIOS)
def test_half_precision_is_averaged_in_float32(ratio):
    # 4,096 log-ratios of 2^-8: a sum in bfloat16 would stop growing at 1, far below 16.
    old = torch.full((1, 4096), -1.0, dtype=torch.bfloat16)
    got = ratio(old + 2**-8, old, torch.zeros(1, 4096, dtype=torch.int64))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.full((1, 4096), math.exp(2**-8)))
