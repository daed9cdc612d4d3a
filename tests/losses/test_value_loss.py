"""The critic's loss by hand, with and without clipping, and at masked places."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.losses import value_loss

MASK = torch.ones(1, 4, dtype=torch.bool)


def test_squared_error_and_its_gradient():
    values = torch.tensor([[0.5, -1.0, 2.0, 0.0]], requires_grad=True)
    returns = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    losses = value_loss(values, torch.full((1, 4), torch.nan), returns, MASK)
    assert losses.tolist() == [[0.125, 2.0, 0.5, 0.0]]
    assert torch.autograd.grad(losses.sum(), values)[0].tolist() == [[-0.5, -2.0, 1.0, 0.0]]


def test_clip_takes_the_larger_error_and_then_has_no_gradient():
    # old 0, clip .25, return 1:
    #   .5 -> held at .25: errors .5 and .75, the larger is the held one: .28125, no gradient
    #  .125 -> inside: .875^2 / 2 = .3828125
    #  -.5 -> held at -.25: errors 1.5 and 1.25, the larger is its own: 1.125
    #    2 -> held at .25: errors 1 and .75, its own: .5
    values = torch.tensor([[0.5, 0.125, -0.5, 2.0]], requires_grad=True)
    old, returns = torch.zeros(1, 4), torch.ones(1, 4)
    losses = value_loss(values, old, returns, MASK, clip=0.25)
    assert losses.tolist() == [[0.28125, 0.3828125, 1.125, 0.5]]
    gradient = torch.autograd.grad(losses.sum(), values)[0]
    assert gradient.tolist() == [[0.0, -0.875, -1.5, 1.0]]


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("dirt", [torch.nan, torch.inf])
def test_masked_places_are_zero_without_gradient(clip, dirt):
    mask = torch.tensor([[True, False]])
    dirty = torch.where(mask, 0.5, dirt)
    values = dirty.clone().requires_grad_()
    losses = value_loss(values, dirty, torch.where(mask, 1.0, dirt), mask, clip=clip)
    assert losses.tolist() == [[0.125, 0.0]]
    assert torch.autograd.grad(losses.sum(), values)[0].tolist() == [[-0.5, 0.0]]


def test_targets_and_old_values_are_not_differentiated():
    old, returns = torch.zeros(2, 1, 4, requires_grad=True)
    assert not value_loss(torch.ones(1, 4), old, returns, MASK, clip=0.5).requires_grad


def test_bad_input_is_one_clear_error():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="clip must be above 0"):
        value_loss(one, one, one, one > 0, clip=0.0)
    with pytest.raises(ValueError, match=r"returns \(1, 2\)"):
        value_loss(one, one, torch.ones(1, 2), one > 0)


@given(seed=st.integers(0, 2**31), clip=st.sampled_from([None, 0.3]))
def test_equals_the_loop_and_its_finite_differences(seed, clip):
    generator = torch.Generator().manual_seed(seed)
    values, old, returns = torch.randn(3, 2, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 6, generator=generator) < 0.6
    x = values.clone().requires_grad_()
    losses = value_loss(x, old, returns, mask, clip=clip)
    (gradient,) = torch.autograd.grad(losses.sum(), x)

    def loop(v, o, g):
        held = v if clip is None else min(max(v, o - clip), o + clip)
        return max((v - g) ** 2, (held - g) ** 2) / 2

    for i in range(2):
        for t in range(6):
            v, o, g = (float(y[i, t]) for y in (values, old, returns))
            expected = loop(v, o, g) if mask[i, t] else 0.0
            assert losses[i, t].item() == pytest.approx(expected, abs=1e-12)
            slope = (loop(v + 1e-6, o, g) - loop(v - 1e-6, o, g)) / 2e-6 if mask[i, t] else 0.0
            assert gradient[i, t].item() == pytest.approx(slope, abs=1e-5)


def test_half_precision_is_widened():
    values = torch.tensor([[0.1]], dtype=torch.bfloat16)
    assert value_loss(values, values, values, values > 0).dtype == torch.float32
