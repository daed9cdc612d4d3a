"""The span recurrence against a float64 loop, its limits and invariances, and worked numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise import spans
from spanwise.advantages import length_adaptive_lambda, span_advantages, span_returns

unit = st.one_of(st.sampled_from([0.0, 1.0, 0.95]), st.floats(0, 1))


def loop_advantages(rewards, values, partition, gamma, lam, bootstrap):
    """The formula of the docstring, one model token at a time from the end, in float64."""
    result = torch.zeros(rewards.shape, dtype=torch.float64)
    for i in range(rewards.shape[0]):
        next_value, next_advantage, next_span = float(bootstrap[i]), 0.0, None
        for t in reversed(range(rewards.shape[1])):
            if partition[i, t] < 0:
                continue
            trace = 1.0 if partition[i, t] == next_span else float(lam[i])
            delta = float(rewards[i, t]) + gamma * next_value - float(values[i, t])
            next_advantage = delta + gamma * trace * next_advantage
            next_value, next_span = float(values[i, t]), partition[i, t]
            result[i, t] = next_advantage
    return result


@st.composite
def batches(draw, dtype=torch.float64):
    """Random masks, spans, lengths, rewards and values; garbage where masked."""
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def uniform():
        return torch.rand(num_rows, width, generator=generator, dtype=torch.float64)

    mask = uniform() < draw(st.sampled_from([0.2, 0.7, 1.0]))
    partition = spans.by_probability(
        uniform().log(), mask, threshold=draw(st.sampled_from([0.0, 0.2, 0.6, 1.1]))
    )
    rewards = torch.where(mask, uniform() * 4 - 2, torch.nan).to(dtype)
    values = torch.where(mask, uniform() * 4 - 2, torch.nan).to(dtype)
    return rewards, values, partition


@settings(max_examples=150)
@given(batches(), unit, st.lists(unit, min_size=4, max_size=4), st.booleans())
def test_equals_the_loop(batch, gamma, lams, truncated):
    rewards, values, partition = batch
    lam = torch.tensor(lams[: len(rewards)], dtype=torch.float64)
    bootstrap = torch.linspace(-1, 1, len(rewards)).double() * truncated
    expected = loop_advantages(rewards, values, partition, gamma, lam, bootstrap)
    got = span_advantages(
        rewards,
        values,
        partition,
        gamma=gamma,
        lam=lam,
        bootstrap=bootstrap if truncated else None,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    one_lam = span_advantages(rewards, values, partition, gamma=gamma, lam=lams[0])
    expected = loop_advantages(
        rewards, values, partition, gamma, [lams[0]] * len(rewards), bootstrap * 0
    )
    torch.testing.assert_close(one_lam, expected, rtol=0, atol=1e-12)


@given(st.integers(0, 2**31), unit, unit)
def test_sae_ends_in_gae(seed, gamma, lam):
    """Threshold 0 is GAE(1), a threshold above 1 is GAE(lam), to 1e-12."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values, probabilities = torch.rand(3, 3, 30, generator=generator).double()
    mask = torch.rand(3, 30, generator=generator) < 0.7
    bootstrap = torch.zeros(3)

    def sae(threshold, side):
        segments = spans.by_probability(probabilities.log(), mask, threshold=threshold, side=side)
        return span_advantages(rewards, values, segments, gamma=gamma, lam=lam)

    per_token = spans.by_token(mask)
    gae_1 = loop_advantages(rewards, values, per_token, gamma, [1.0] * 3, bootstrap)
    gae_lam = loop_advantages(rewards, values, per_token, gamma, [lam] * 3, bootstrap)
    for side in ("start", "end"):
        torch.testing.assert_close(sae(0.0, side), gae_1, rtol=0, atol=1e-12)
        torch.testing.assert_close(sae(1.1, side), gae_lam, rtol=0, atol=1e-12)


@given(batches())
def test_whole_spans_and_lam_1_are_monte_carlo(batch):
    rewards, values, partition = batch
    mask = partition >= 0
    paid = torch.where(mask, rewards, 0)
    to_come = paid.flip(1).cumsum(1).flip(1)
    expected = torch.where(mask, to_come - values, 0)
    whole = span_advantages(rewards, values, spans.whole(mask), lam=0.3)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
    lam_1 = span_advantages(rewards, values, partition, lam=1.0)
    torch.testing.assert_close(lam_1, expected, rtol=0, atol=1e-12)


def test_lam_0_looks_no_further_than_the_next_boundary():
    rewards = torch.tensor([[0.0, 0.25, 0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.75, 9.0, 0.125, 0.375]])
    partition = torch.tensor([[0, 0, -1, 1, 1]])
    got = span_advantages(rewards, values, partition, lam=0.0)
    # V at the boundary is .125. Token 0: .25 + .125 - .5; token 1: .25 + .125 - .75;
    # then 1 - .125 and 1 - .375.
    assert got.tolist() == [[-0.125, -0.375, 0.0, 0.875, 0.625]]


def test_published_multi_turn_example():
    # Mask 1 1 0 0 0 1 1, reward 1 at the end, model values .5, observation values .9.
    # A_7 = 1 - .5 = .5; each earlier token has delta 0, so A = .95 * A_next:
    # .475, .45125, .4286875, whatever stands in the three masked places.
    mask = torch.tensor([[True, True, False, False, False, True, True]])
    values = torch.where(mask, 0.5, 0.9).double()
    rewards = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]]).double()
    got = span_advantages(rewards, values, spans.by_token(mask), lam=0.95)[mask]
    assert [round(a, 4) for a in got.tolist()] == [0.4287, 0.4512, 0.475, 0.5]


def test_turn_level_gae_by_hand():
    # Two turns of two tokens: inside a turn the trace does not decay, between turns it does.
    # A_4 = 1 - .25 = .75, A_3 = .25 - .5 + .75 = .5 (that is 1 - .5),
    # A_2 = (.5 - .125) + .5 * .5 = .625, A_1 = (.125 - 0) + .625 = .75.
    mask = torch.tensor([[True, True, False, True, True]])
    values = torch.tensor([[0.0, 0.125, 7.0, 0.5, 0.25]])
    rewards = torch.tensor([[0.0, 0.0, 7.0, 0.0, 1.0]])
    got = span_advantages(rewards, values, spans.by_turn(mask), lam=0.5)
    assert got.tolist() == [[0.75, 0.625, 0.0, 0.5, 0.75]]


@given(batches(), unit, unit, st.integers(1, 4))
def test_a_longer_observation_changes_no_advantage(batch, gamma, lam, extra):
    rewards, values, partition = batch
    cut = rewards.shape[1] // 2

    def widened(x, fill):
        room = torch.full((len(x), extra), fill, dtype=x.dtype)
        return torch.cat([x[:, :cut], room, x[:, cut:]], 1)

    before = span_advantages(rewards, values, partition, gamma=gamma, lam=lam)
    after = span_advantages(
        widened(rewards, 5.0), widened(values, -7.0), widened(partition, -1), gamma=gamma, lam=lam
    )
    assert torch.equal(torch.cat([after[:, :cut], after[:, cut + extra :]], 1), before)
    assert (after[:, cut : cut + extra] == 0).all()


@given(batches(), unit, unit)
def test_rows_do_not_see_each_other(batch, gamma, lam):
    rewards, values, partition = batch
    together = span_advantages(rewards, values, partition, gamma=gamma, lam=lam)
    for i in range(len(rewards)):
        row = slice(i, i + 1)
        alone = span_advantages(rewards[row], values[row], partition[row], gamma=gamma, lam=lam)
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-14)


def test_nan_value_reaches_earlier_tokens_of_its_row_alone():
    values = torch.zeros(2, 5)
    values[0, 2] = torch.nan
    got = span_advantages(torch.ones(2, 5), values, torch.arange(5).expand(2, 5))
    assert got.isnan().tolist() == [[True, True, True, False, False], [False] * 5]


def test_bootstrap_stands_for_the_value_after_a_truncated_row():
    # gamma .5: A = 0 + .5 * 4 - 1 = 1 for the truncated row, -1 for the one that ended.
    got = span_advantages(
        torch.zeros(3, 2),
        torch.ones(3, 2),
        torch.tensor([[0, -1], [0, -1], [-1, -1]]),
        gamma=0.5,
        bootstrap=torch.tensor([4.0, 0.0, 4.0]),
    )
    assert got.tolist() == [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("dtype", "num_eps"), [(torch.float32, 16), (torch.bfloat16, 1), (torch.float16, 1)]
)
def test_long_rows_lose_little_precision(dtype, num_eps):
    """Half precision loses one rounding of the result, float32 a few, over 8,192 tokens."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 8192, generator=generator).to(dtype)
    rewards = torch.zeros(2, 8192, dtype=dtype)
    rewards[:, -1] = 1
    partition = spans.by_probability(
        torch.rand(2, 8192, generator=generator).log(), torch.ones(2, 8192, dtype=torch.bool)
    )
    got = span_advantages(rewards, values, partition, lam=0.99)
    assert got.dtype == dtype
    exact = span_advantages(rewards.double(), values.double(), partition, lam=0.99)
    error = (got.double() - exact).abs().max().item()
    assert exact.abs().max() < 2 and error < num_eps * torch.finfo(dtype).eps


def test_nothing_is_differentiated_through():
    values = torch.zeros(1, 2, requires_grad=True)
    partition = torch.tensor([[0, 1]])
    assert not span_advantages(torch.ones(1, 2), values, partition).requires_grad
    assert not span_returns(torch.ones(1, 2), values, partition).requires_grad


@given(batches(), unit, unit)
def test_returns_are_advantages_plus_values(batch, gamma, lam):
    rewards, values, partition = batch
    mask = partition >= 0
    got = span_returns(rewards, values, partition, gamma=gamma, lam=lam)
    advantages = span_advantages(rewards, values, partition, gamma=gamma, lam=lam)
    torch.testing.assert_close(got[mask], (advantages + values)[mask], rtol=0, atol=1e-12)
    assert (got[~mask] == 0).all()


def test_default_returns_do_not_depend_on_the_critic():
    rewards = torch.tensor([[0.5, 0.0, 0.0, 1.0]]).double()
    partition = torch.tensor([[0, -1, 1, 2]])
    for seed in range(3):
        values = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed)).double()
        got = span_returns(rewards, values, partition, gamma=0.5)
        # .5 + .5 * (0 + .5 * 1), then .5 * 1, then 1
        torch.testing.assert_close(got, torch.tensor([[0.75, 0.0, 0.5, 1.0]]).double())


def test_length_adaptive_lambda():
    mask = torch.zeros(5, 400, dtype=torch.bool)
    for row, length in enumerate([400, 100, 20, 5, 0]):
        mask[row, :length] = True
    # 1 - 1 / (.05 * 400) = .95; 1 - 1 / 5 = .8; 1 - 1 / 1 = 0; then below 0, held at 0
    expected = torch.tensor([0.95, 0.8, 0.0, 0.0, 0.0])
    torch.testing.assert_close(length_adaptive_lambda(mask), expected)
    torch.testing.assert_close(
        length_adaptive_lambda(mask, alpha=1.0)[:2], torch.tensor([0.9975, 0.99])
    )


ONE = torch.ones(1, 2)
TWO_SPANS = torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: span_advantages(ONE, ONE[:, :1], TWO_SPANS), r"values \(1, 1\)"),
        (lambda: span_advantages(ONE, ONE, TWO_SPANS >= 0), "spans must be int64"),
        (lambda: span_advantages(ONE * torch.nan, ONE, TWO_SPANS), "reward is NaN"),
        (lambda: span_advantages(ONE.long(), ONE.long(), TWO_SPANS), "must be float"),
        (lambda: span_advantages(ONE, ONE, TWO_SPANS, lam=1.1), "lam must lie in"),
        (lambda: span_advantages(ONE, ONE, TWO_SPANS, lam=torch.ones(3)), r"\[N\] = \[1\]"),
        (lambda: span_advantages(ONE, ONE, TWO_SPANS, gamma=-1), "gamma must lie in"),
        (lambda: span_advantages(ONE, ONE, TWO_SPANS, bootstrap=ONE), r"bootstrap must be \[N\]"),
        (lambda: length_adaptive_lambda(ONE > 0, alpha=0), "alpha must be above 0"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
