"""Chunked log-probs and entropies against the plain form, their gradients, and their memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.models import logprobs
from spanwise.models.logprobs import logprobs_and_entropies


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of two tokens at a vocabulary of 11, so that every test sees several."""
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 30)


def inputs(seed, num_tokens=7, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((num_tokens, 3), (11, 3), (11,))
    )
    return hidden, weight, bias, torch.randint(0, 11, (num_tokens,), generator=generator)


def plain(hidden, weight, bias, tokens):
    """All logits at once, left to autograd."""
    every = (hidden @ weight.T + bias).log_softmax(-1)
    return every.gather(1, tokens[:, None])[:, 0], -(every.exp() * every).sum(1)


@given(st.integers(0, 2**31), st.integers(0, 9))
def test_values_and_gradients_equal_the_plain_form(seed, num_tokens):
    hidden, weight, bias, tokens = inputs(seed, num_tokens)
    factors = torch.randn(2, num_tokens, dtype=torch.float64)
    found = []
    for outputs in (
        logprobs_and_entropies(hidden, weight, tokens, bias=bias),
        plain(hidden, weight, bias, tokens),
    ):
        loss = sum((f * x).sum() for f, x in zip(factors, outputs, strict=True))
        found.append([*outputs, *torch.autograd.grad(loss, (hidden, weight, bias))])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("output", [0, 1])
def test_gradients_against_finite_differences(output):
    hidden, weight, bias, tokens = inputs(0)
    assert torch.autograd.gradcheck(
        lambda h, w, b: logprobs_and_entropies(h, w, tokens, bias=b)[output],
        (hidden, weight, bias),
        check_undefined_grad=False,
    )


def test_hand_worked_numbers():
    # Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
    # H = ln 8 - (2 ln 2 + 5 ln 5) / 8 = 2.0794 - (1.3863 + 8.0472) / 8 = .9003
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    logps, entropies = logprobs_and_entropies(torch.ones(2, 1), weight, torch.tensor([1, 2]))
    assert logps.exp().tolist() == pytest.approx([0.25, 0.625])
    assert entropies.tolist() == pytest.approx([0.900256] * 2, abs=1e-5)


def test_only_what_is_asked_for_has_a_gradient():
    hidden, weight, _, tokens = inputs(1)
    frozen = weight.detach()
    logps, entropies = logprobs_and_entropies(hidden, frozen, tokens)
    (both,) = torch.autograd.grad((logps + 0 * entropies).sum(), hidden)
    logps, entropies = logprobs_and_entropies(hidden, frozen, tokens)
    (alone,) = torch.autograd.grad(logps.sum(), hidden)
    torch.testing.assert_close(both, alone, rtol=1e-12, atol=1e-14)
    assert not any(x.requires_grad for x in logprobs_and_entropies(hidden.detach(), frozen, tokens))


def test_huge_and_impossible_logits():
    # Logits 1e4, 0 and -inf: probabilities 1, 0, 0; nothing overflows, no 0 * inf.
    weight = torch.tensor([[1e4], [0.0], [0.0]], requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -math.inf])
    hidden = torch.ones(1, 1, requires_grad=True)
    logps, entropies = logprobs_and_entropies(hidden, weight, torch.tensor([0]), bias=bias)
    assert logps.item() == 0 and entropies.item() == 0
    for gradient in torch.autograd.grad((logps + entropies).sum(), (hidden, weight)):
        assert gradient.isfinite().all()
    logps, _ = logprobs_and_entropies(hidden, weight, torch.tensor([2]), bias=bias)
    assert logps.item() == -math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    hidden, weight, _, tokens = inputs(2, 40, dtype=dtype)
    outputs = logprobs_and_entropies(hidden, weight, tokens)
    assert all(x.dtype == torch.float32 for x in outputs)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = plain(*exact, torch.zeros(11).double(), tokens)
    eps = torch.finfo(dtype).eps
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=8 * eps)
    gradients = torch.autograd.grad(outputs[0].sum(), (hidden, weight))
    wanted = torch.autograd.grad(expected[0].sum(), exact)
    for got, want in zip(gradients, wanted, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=4 * eps, atol=60 * eps)


def test_no_array_of_all_logits_is_ever_made(monkeypatch):
    """The largest array of a pass is the chunk, not the batch times the vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 4 * 500)

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    Largest.size = max(Largest.size, x.numel())
            return out

    hidden = torch.randn(64, 2, requires_grad=True)
    weight = torch.randn(500, 2, requires_grad=True)
    with Largest():
        logps, entropies = logprobs_and_entropies(hidden, weight, torch.arange(64))
        (logps + entropies).sum().backward()
    assert Largest.size == 4 * 500  # of 64 * 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 4)}, r"hidden must be \[K, D\] and weight \[V, D\]"),
        ({"tokens": torch.zeros(3).long()}, "one for each of the 2 rows"),
        ({"tokens": torch.tensor([0, 11])}, r"lie in \[0, 11\)"),
        ({"tokens": torch.tensor([-1, 0])}, r"lie in \[0, 11\)"),
        ({"bias": torch.zeros(3)}, r"must be \[V\] = \[11\]"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    hidden, weight, bias, tokens = inputs(0, 2)
    arguments = {"hidden": hidden, "weight": weight, "tokens": tokens, "bias": bias} | change
    with pytest.raises(ValueError, match=message):
        logprobs_and_entropies(**arguments)
