"""KL estimates: value and gradient in expectation, enumerated over a small action set."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.losses import kl_k1, kl_k2, kl_k3

ESTIMATES = [kl_k1, kl_k2, kl_k3]


def enumerated(estimate):
    """Expected value and gradient over four actions; exact KL both ways and its gradients."""
    logits = torch.tensor([0.5, -1.0, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-2.0, 0.4, 0.9, 0.1], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    forward = (logp.exp() * (logp - reference)).sum()
    backward = (reference.exp() * (reference - logp)).sum()
    exact = {
        name: (kl.item(), torch.autograd.grad(kl, logits, retain_graph=True)[0])
        for name, kl in (("policy", forward), ("reference", backward))
    }
    tokens = estimate(logp[:, None], reference[:, None], torch.ones(4, 1, dtype=torch.bool))
    expected = (logp.exp().detach() * tokens[:, 0]).sum()
    return expected.item(), torch.autograd.grad(expected, logits)[0], exact


def test_k1_has_the_value_and_no_gradient():
    value, gradient, exact = enumerated(kl_k1)
    assert value == pytest.approx(exact["policy"][0], abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_k2_has_the_gradient_and_not_the_value():
    value, gradient, exact = enumerated(kl_k2)
    torch.testing.assert_close(gradient, exact["policy"][1], rtol=0, atol=1e-12)
    assert abs(value - exact["policy"][0]) > 0.01


def test_k3_has_the_value_and_the_gradient_of_the_other_direction():
    value, gradient, exact = enumerated(kl_k3)
    assert value == pytest.approx(exact["policy"][0], abs=1e-12)
    torch.testing.assert_close(gradient, exact["reference"][1], rtol=0, atol=1e-12)
    assert (gradient - exact["policy"][1]).abs().max() > 0.01


def test_values_by_hand():
    # logp - ref = ln 2: k1 = .6931, k2 = .2402, k3 = 1/2 - 1 + .6931 = .1931
    x, mask = torch.tensor([[2.0]]).log(), torch.tensor([[True]])
    got = [estimate(x, x * 0, mask).item() for estimate in ESTIMATES]
    assert got == pytest.approx([0.693147, 0.240227, 0.193147], abs=1e-6)


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("dirt", [torch.nan, torch.inf, -torch.inf])
def test_masked_places_are_zero_without_gradient(estimate, dirt):
    mask = torch.tensor([[True, False]])
    x = torch.tensor([[-1.0, dirt]], requires_grad=True)
    got = estimate(x, torch.tensor([[-3.0, dirt]]), mask)
    assert got[0, 1] == 0
    gradient = torch.autograd.grad(got.sum(), x)[0]
    assert gradient[0, 1] == 0 and gradient[0, 0] > 0


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_the_reference_is_not_differentiated(estimate):
    reference = torch.zeros(1, 1, requires_grad=True)
    assert not estimate(torch.ones(1, 1), reference, torch.tensor([[True]])).requires_grad


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_other_shapes_are_refused(estimate):
    with pytest.raises(ValueError, match=r"reference_logprobs \(1, 2\)"):
        estimate(torch.ones(1, 1), torch.ones(1, 2), torch.tensor([[True]]))


@pytest.mark.parametrize("estimate", ESTIMATES)
@given(seed=st.integers(0, 2**31))
def test_equals_the_formula_and_its_finite_differences(estimate, seed):
    generator = torch.Generator().manual_seed(seed)
    logp, reference = torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 5, generator=generator) < 0.6
    x = logp.clone().requires_grad_()
    got = estimate(x, reference, mask)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    formula = {
        kl_k1: lambda d: d,
        kl_k2: lambda d: d * d / 2,
        kl_k3: lambda d: math.exp(-d) - 1 + d,
    }[estimate]
    for i in range(2):
        for t in range(5):
            d = float(logp[i, t] - reference[i, t])
            expected = formula(d) if mask[i, t] else 0.0
            slope = (formula(d + 1e-6) - formula(d - 1e-6)) / 2e-6 if mask[i, t] else 0.0
            assert got[i, t].item() == pytest.approx(expected, abs=1e-12)
            assert gradient[i, t].item() == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("apart", [30.0, 100.0, 1e6])
def test_k3_of_a_token_that_the_policy_no_longer_draws_is_finite_and_pulls_it_back(apart):
    x = torch.tensor([[-apart, -19.0]], requires_grad=True)
    got = kl_k3(x, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(got, torch.tensor([[math.exp(20) - 21, math.exp(19) - 20]]))
    (gradient,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[1 - math.exp(20), 1 - math.exp(19)]]))
