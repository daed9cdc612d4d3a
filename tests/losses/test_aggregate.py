"""Means of losses: by loops, and the same for every split, order and padding (A6)."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise import spans
from spanwise.losses import (
    clipped_surrogate,
    mean_by_constant,
    mean_by_sample,
    mean_by_token,
    span_ratio,
    token_gradient_ratio,
)

by_constant = functools.partial(mean_by_constant, length=7)
MEANS = [mean_by_sample, mean_by_token, by_constant]


@st.composite
def batches(draw):
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.8]))
    losses, weights = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return losses, mask, weights


@given(batches())
def test_means_equal_loops(batch):
    losses, mask, weights = batch
    rows = [i for i in range(len(mask)) if mask[i].any()]
    sums = {i: float((losses[i] * weights[i])[mask[i]].sum()) for i in rows}
    lengths = {i: int(mask[i].sum()) for i in rows}
    expected = [
        sum(sums[i] / lengths[i] for i in rows) / max(1, len(rows)),
        sum(sums.values()) / max(1, sum(lengths.values())),
        sum(sums.values()) / 7 / max(1, len(rows)),
    ]
    got = [mean(losses, mask, weights=weights).item() for mean in MEANS]
    assert got == pytest.approx(expected, abs=1e-12)


def test_hand_worked_numbers():
    losses = torch.tensor([[1.0, 2.0, 9.0], [9.0, 6.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    half = torch.full((3, 3), 0.5)
    # Row means 1.5 and 6, the empty row is not counted: 7.5 / 2; tokens: 9 / 3; 9 / 7 / 2
    assert mean_by_sample(losses, mask).item() == 3.75
    assert mean_by_token(losses, mask).item() == 3.0
    assert by_constant(losses, mask).item() == pytest.approx(9 / 14)
    # Weights do not enter the counts: half the weight is half the loss.
    assert mean_by_sample(losses, mask, weights=half).item() == 1.875
    # Given counts replace the counted ones.
    assert mean_by_sample(losses, mask, num_samples=5).item() == 1.5
    assert mean_by_token(losses, mask, num_tokens=torch.tensor(18)).item() == 0.5


def objective(rows, mean, ratio, counts):
    """Loss and gradient of some rows of an update, as a training step computes them."""
    logprobs, old, advantages, mask = rows
    x = logprobs.clone().requires_grad_()
    losses, _ = clipped_surrogate(
        x, old, advantages, spans.by_turn(mask), clip_low=0.1, clip_high=0.2, ratio=ratio
    )
    key = "num_tokens" if mean is mean_by_token else "num_samples"
    loss = mean(losses, mask, **{key: counts[key]})
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("ratio", [span_ratio, token_gradient_ratio])
@given(data=st.data())
def test_loss_and_gradient_are_the_same_for_every_split_order_and_padding(mean, ratio, data):
    num_rows, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logprobs, old, advantages = torch.randn(
        3, num_rows, width, generator=generator, dtype=torch.float64
    )
    mask = torch.rand(num_rows, width, generator=generator) < 0.6
    counts = {"num_samples": mask.any(1).sum(), "num_tokens": int(mask.sum())}
    whole_loss, whole_gradient = objective((logprobs, old, advantages, mask), mean, ratio, counts)
    # The default counts are those of the whole.
    losses, _ = clipped_surrogate(
        logprobs, old, advantages, spans.by_turn(mask), clip_low=0.1, clip_high=0.2, ratio=ratio
    )
    torch.testing.assert_close(mean(losses, mask), whole_loss, rtol=1e-14, atol=1e-14)

    # Any order, cut anywhere (into micro-batches or ranks), every part with its own padding.
    order = torch.randperm(num_rows, generator=generator)
    cuts = sorted(data.draw(st.sets(st.integers(1, 7))))
    total, gradient = 0.0, torch.zeros_like(whole_gradient)
    for rows in torch.tensor_split(order, [c for c in cuts if c < num_rows]):
        left, right = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))

        def padded(x, fill, rows=rows, sides=(left, right)):
            return torch.nn.functional.pad(x[rows], sides, value=fill)

        part = [padded(x, torch.nan) for x in (logprobs, old, advantages)] + [padded(mask, False)]
        loss, part_gradient = objective(part, mean, ratio, counts)
        total = total + loss
        gradient[rows] = part_gradient[:, left : left + width]
        outside = torch.cat([part_gradient[:, :left], part_gradient[:, left + width :]], 1)
        assert not outside.any()
    torch.testing.assert_close(total, whole_loss, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("mean", MEANS)
def test_masked_losses_and_weights_may_be_nan(mean):
    mask = torch.tensor([[True, False], [False, False]])
    x = torch.where(mask, 2.0, torch.nan).requires_grad_()
    weights = torch.where(mask, 3.0, torch.nan)
    loss = mean(x * x, mask, weights=weights)
    (gradient,) = torch.autograd.grad(loss, x)
    # 2 * 2 * 3 and 2 * 2 * 3, over 1 sample, 1 token, or length 7
    size = 12 / 7 if mean is by_constant else 12.0
    assert loss.item() == pytest.approx(size)
    assert gradient[mask].item() == pytest.approx(size)


@pytest.mark.parametrize("mean", MEANS)
def test_weights_are_not_differentiated(mean):
    weights = torch.ones(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert not mean(torch.ones(2, 3), mask, weights=weights).requires_grad


@pytest.mark.parametrize("mean", MEANS)
def test_nothing_to_average_is_zero(mean):
    x = torch.full((2, 3), torch.nan, requires_grad=True)
    loss = mean(x, torch.zeros(2, 3, dtype=torch.bool))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("mean", MEANS)
def test_bad_input_is_one_clear_error(mean):
    losses, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"losses \(2, 3\), mask \(2, 1\)"):
        mean(losses, mask[:, :1])
    with pytest.raises(ValueError, match=r"weights \(2, 1\)"):
        mean(losses, mask, weights=losses[:, :1])
    with pytest.raises(ValueError, match="length is a number of tokens"):
        mean_by_constant(losses, mask, length=0)
