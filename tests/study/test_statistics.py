from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise.study.statistics import bootstrap_interval, mid_ranks, pearson, spearman

X = np.array([1.0, 2.0, 3.0, 4.0])


def test_by_hand() -> None:
    estimates = np.array([[2.0, 1.0, 4.0, 30.0], [1.0, 1.0, 1.0, 1.0]])
    # deviations -1.5 -.5 .5 1.5 and -7.25 -8.25 -5.25 20.75
    products = 1.5 * 7.25 + 0.5 * 8.25 - 0.5 * 5.25 + 1.5 * 20.75
    spread = math.sqrt(5 * (7.25**2 + 8.25**2 + 5.25**2 + 20.75**2))
    linear, constant = pearson(X, estimates)
    assert linear == pytest.approx(products / spread) and math.isnan(constant)
    # ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15)
    assert spearman(X, estimates)[0] == pytest.approx(0.8)


def test_equal_values_share_their_ranks() -> None:
    assert mid_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


@given(st.lists(st.integers(-99, 99), min_size=5, max_size=20), st.randoms())
@settings(max_examples=40, deadline=None)
def test_ranks_do_not_see_a_rising_function(values: list[int], random) -> None:
    x = np.array(values, dtype=np.float64)
    y = np.array(random.sample(values, len(values)), dtype=np.float64)
    np.testing.assert_allclose(spearman(x, y[None]), spearman(x, y[None] ** 3))


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    # Mean 0.495, standard error sqrt((100^2 - 1) / 12) / 100 / 10 = 0.0289; +-1.96 of them.
    low, high = bootstrap_interval(np.mean, [i / 100 for i in range(100)])
    assert low == pytest.approx(0.495 - 1.96 * 0.0289, abs=0.004)
    assert high == pytest.approx(0.495 + 1.96 * 0.0289, abs=0.004)


def test_samples_are_drawn_on_their_own_and_statistics_may_be_many() -> None:
    def ends(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        assert len(x) == 3 and len(y) == 5 and set(x) <= {1, 2, 3} and set(y) <= {7, 8}
        return np.array([x.max() - y.max(), x.min(), math.nan])

    drawn = bootstrap_interval(ends, [1, 2, 3], [7, 8, 8, 8, 8], num_resamples=300, level=0.99)
    assert [end.tolist()[:2] for end in drawn] == [[-7.0, 1.0], [-5.0, 3.0]]
    assert math.isnan(drawn[0][2])
    once_more = bootstrap_interval(ends, [1, 2, 3], [7, 8, 8, 8, 8], num_resamples=300, level=0.99)
    np.testing.assert_equal(drawn, once_more)


def test_an_interval_covers_what_it_should() -> None:
    """Of a correlation of independent clusters, 95% intervals miss 0 about 1 time in 20."""
    rng = np.random.default_rng(0)
    missed = 0
    for seed in range(100):
        x, y = rng.standard_normal((2, 60))
        low, high = bootstrap_interval(
            lambda at, x=x, y=y: pearson(x[at], y[None, at])[0],
            list(range(60)),
            num_resamples=200,
            seed=seed,
        )
        missed += not low <= 0 <= high
    assert missed <= 14
