from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise.samplers.base import Sampling
from spanwise.samplers.embedded.drawing import draw_tokens, uniforms


def oracle(logits: list[float], u: float, sampling: Sampling) -> tuple[int, float, float]:
    """Token and log-probs of one row, written from the definition in plain floats."""
    top = max(logits)
    plain = [math.exp(x - top) for x in logits]
    logprobs = [math.log(p / sum(plain)) for p in plain]
    if sampling.temperature == 0:
        best = logits.index(top)
        return best, logprobs[best], 0.0
    weights = [math.exp((x - top) / sampling.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    kept = order[: sampling.top_k or len(order)]
    mass, nucleus = sum(weights[i] for i in kept), []
    for i in kept:
        if sampling.top_p < 1 and sum(weights[j] for j in nucleus) >= sampling.top_p * mass:
            break
        nucleus.append(i)
    mass, running = sum(weights[i] for i in nucleus), 0.0
    for i in sorted(nucleus):
        running += weights[i] / mass
        if running > u:
            return i, logprobs[i], math.log(weights[i] / mass)
    raise AssertionError("u lies in [0, 1)")


rows = st.tuples(
    st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=6, max_size=6),
    st.floats(0.001, 0.999),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
        top_p=st.sampled_from([0.31, 0.83, 1.0]),
        top_k=st.integers(0, 7),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(rows, min_size=1, max_size=5))
def test_every_row_equals_the_plain_oracle(batch: list[tuple[list[float], float, Sampling]]):
    logits = torch.tensor([row for row, _, _ in batch])
    draws = draw_tokens(logits, [u for _, u, _ in batch], [s for _, _, s in batch])
    for i, row in enumerate(batch):
        logits_of_row, u, sampling = row
        if len({oracle(logits_of_row, u + d, sampling)[0] for d in (-1e-6, 1e-6)}) > 1:
            continue  # on the edge between two tokens rounding decides
        token, logprob, sampling_logprob = oracle(*row)
        assert draws.tokens[i] == token
        assert draws.logprobs[i] == pytest.approx(logprob, abs=1e-5)
        assert draws.sampling_logprobs[i] == pytest.approx(sampling_logprob, abs=1e-9)


def test_boundaries_of_the_inverse_cdf():
    # Probabilities 1/4, 0, 3/4: running sums 0.25, 0.25, 1.
    logits = torch.tensor([0.0, -torch.inf, math.log(3.0)]).expand(4, 3)
    u = [0.0, 0.2499, 0.2501, math.nextafter(1.0, 0.0)]
    assert draw_tokens(logits, u, [Sampling()] * 4).tokens == [0, 0, 2, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    # Probabilities 1/2, 1/4, 1/8, 1/8, exact in binary. The first alone reaches 0.5.
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(3, 4)
    settings_ = [Sampling(top_p=p) for p in (0.5, 0.51, 0.76)]
    draws = draw_tokens(logits, [0.999] * 3, settings_)
    assert draws.tokens == [0, 1, 2]
    assert draws.sampling_logprobs == pytest.approx(
        [0.0, math.log(0.25 / 0.75), math.log(0.125 / 0.875)]
    )


def test_top_k_keeps_exactly_k_of_equals():
    draws = draw_tokens(torch.zeros(2, 5), [0.0, 0.999], [Sampling(top_k=2)] * 2)
    assert draws.tokens == [0, 1]
    assert draws.sampling_logprobs == pytest.approx([math.log(0.5)] * 2)


def test_the_frequencies_are_the_probabilities():
    torch.manual_seed(1)
    logits = torch.randn(8)
    n = 40_000
    u = uniforms(3, n).tolist()
    tokens = draw_tokens(logits.expand(n, 8), u, [Sampling(temperature=0.8)] * n).tokens
    expected = (logits.double() / 0.8).softmax(0).numpy() * n
    chi2 = (((np.bincount(tokens, minlength=8) - expected) ** 2) / expected).sum()
    assert chi2 < 24.3  # the 99.9% point of chi-square with 7 degrees of freedom


@pytest.mark.parametrize("truncated", [False, True])
def test_a_row_is_the_same_bits_in_any_batch(truncated: bool):
    torch.manual_seed(0)
    logits, u = 3 * torch.randn(37, 701), torch.rand(37, dtype=torch.float64).tolist()
    last = Sampling(top_p=0.7) if truncated else Sampling()
    sampling = [Sampling(temperature=0.9)] * 36 + [last]
    whole = draw_tokens(logits, u, sampling)
    for i in range(36):
        alone = draw_tokens(logits[i : i + 1], u[i : i + 1], sampling[i : i + 1])
        assert alone.tokens == whole.tokens[i : i + 1]
        assert alone.logprobs == whole.logprobs[i : i + 1]
        assert alone.sampling_logprobs == whole.sampling_logprobs[i : i + 1]


def test_rows_of_nan_show_in_the_log_probs_and_leave_the_others_alone():
    logits = torch.tensor([[float("nan")] * 3, [0.0, 0.0, 0.0]])
    for sampling in (Sampling(), Sampling(temperature=0.0), Sampling(top_k=2)):
        draws = draw_tokens(logits, [0.5, 0.5], [sampling, Sampling()])
        assert math.isnan(draws.logprobs[0])
        assert draws.tokens[1] == 1


def test_uniforms_follow_the_seed_and_the_position():
    assert not np.array_equal(uniforms(1, 8), uniforms(2, 8))
    assert np.array_equal(uniforms(1, 3), uniforms(1, 8)[:3])
    assert np.array_equal(uniforms(-1, 3), uniforms(2**128 - 1, 3))
    many = np.concatenate([uniforms(seed, 4) for seed in range(5000)])
    assert many.min() >= 0 and many.max() < 1
    assert abs(many.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(many))
    first = many[::4]  # neighbouring seeds: no correlation beyond 4 standard errors
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / math.sqrt(len(first))
