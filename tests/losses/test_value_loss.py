"""The critic's loss by hand, with and without clipping, and at masked places."""

import pytest
import torch

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


def test_bad_input_is_one_clear_error():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="clip must be above 0"):
        value_loss(one, one, one, one > 0, clip=0.0)
    with pytest.raises(ValueError, match=r"returns \(1, 2\)"):
        value_loss(one, one, torch.ones(1, 2), one > 0)
