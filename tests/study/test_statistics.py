from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise.study.statistics import interval, mid_ranks, pearson, resample_weights, spearman

ONES = torch.ones(1, 4)


def test_by_hand() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 4.0, 30.0])
    # deviations -1.5 -.5 .5 1.5 and -7.25 -8.25 -5.25 20.75
    products = 1.5 * 7.25 + 0.5 * 8.25 - 0.5 * 5.25 + 1.5 * 20.75
    spread = math.sqrt(5 * (7.25**2 + 8.25**2 + 5.25**2 + 20.75**2))
    assert pearson(x, y, ONES).item() == pytest.approx(products / spread)
    # ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15)
    assert spearman(x, y, ONES).item() == pytest.approx(0.8)
    assert math.isnan(pearson(x, torch.ones(4), ONES).item())


def test_equal_values_share_their_ranks() -> None:
    x = torch.tensor([3.0, 1.0, 3.0, 2.0])
    assert mid_ranks(x, ONES).tolist() == [[3.5, 1.0, 3.5, 2.0]]
    # the first counts twice, the last not at all: 1 3 3 3
    weights = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert mid_ranks(x, weights)[0, :3].tolist() == [3.0, 1.0, 3.0]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=3))
@settings(max_examples=60, deadline=None)
def test_a_count_is_as_good_as_a_repetition(rows: list[tuple[int, int, int]]) -> None:
    x, y, counts = (torch.tensor(c, dtype=torch.float64) for c in zip(*rows, strict=True))
    for statistic in (pearson, spearman):
        counted = statistic(x, y, counts[None])
        repeats = counts.long()
        if repeats.sum() == 0:
            continue
        a, b = x.repeat_interleave(repeats), y.repeat_interleave(repeats)
        repeated = statistic(a, b, torch.ones(1, len(a)))
        torch.testing.assert_close(counted, repeated, equal_nan=True, rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(-99, 99), min_size=5, max_size=20), st.randoms())
@settings(max_examples=40, deadline=None)
def test_ranks_do_not_see_a_rising_function(values: list[int], random) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    y = torch.tensor(random.sample(values, len(values)), dtype=torch.float64)
    ones = torch.ones(1, len(values))
    torch.testing.assert_close(spearman(x, y, ones), spearman(x, y**3, ones), equal_nan=True)


def test_prompts_are_drawn_whole() -> None:
    clusters = torch.tensor([0, 0, 1, 2, 2, 2])
    weights = resample_weights(clusters, 500, 0)
    assert weights.shape == (500, 6)
    assert torch.equal(weights[:, 0], weights[:, 1]) and torch.equal(weights[:, 3], weights[:, 5])
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # as many prompts as there are
    assert weights[:, 2].mean() == pytest.approx(1, abs=0.15)
    assert torch.equal(weights, resample_weights(clusters, 500, 0))


def test_an_interval_covers_what_it_should() -> None:
    """Of a correlation of independent clusters, 95% intervals miss 0 about 1 time in 20."""
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for seed in range(100):
        x, y = torch.randn(2, 60, generator=generator)
        weights = resample_weights(torch.arange(60), 200, seed)
        low, high = interval(pearson(x, y, weights))
        missed += not low <= 0 <= high
    assert missed <= 14
    assert interval(torch.tensor([math.nan])) != interval(torch.tensor([1.0]))
