"""Bootstrap intervals, and correlations of several estimates with one truth.

Tokens of one prompt are alike, so whole prompts are drawn anew: what is resampled are the
numbers of the prompts, and the statistic takes the tokens of those that were drawn.

Shapes: E estimates, K observations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def pearson(truth: Array, estimates: Array) -> Array:
    """The linear correlation of each estimate with the truth.

    Args:
      truth: ``[K]``.
      estimates: ``[E, K]``.

    Returns:
      ``[E]`` in ``[-1, 1]``; NaN where one of the two does not vary.

    Example:
      >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([[1.0, 3.0, 2.0]])).round(4).tolist()
      [0.5]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(truth, estimates)[0, 1:]


def spearman(truth: Array, estimates: Array) -> Array:
    """The correlation of the ranks; see ``pearson``.

    Example:
      >>> spearman(np.array([1.0, 2.0, 30.0]), np.array([[1.0, 4.0, 9.0]])).round(4).tolist()
      [1.0]
    """
    return pearson(mid_ranks(truth), np.stack([mid_ranks(estimate) for estimate in estimates]))


def mid_ranks(x: Array) -> Array:
    """The rank of each of ``[K]`` values, from 1; the mean rank for equal ones.

    Example:
      >>> mid_ranks(np.array([5.0, 7.0, 5.0])).tolist()
      [1.5, 3.0, 1.5]
    """
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def bootstrap_interval(
    statistic: Callable[..., Any],
    *samples: Sequence[float] | Array,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Percentile interval of a statistic when each sample is drawn anew from itself.

    Args:
      statistic: Takes as many samples as there are; a number, or an array of numbers, whose
        NaN ones, of constant samples, are left out.
      samples: Each resampled on its own.
      level: Share of the draws that lie inside.
      num_resamples: How often the samples are drawn.
      seed: Seed of the draws.

    Returns:
      Low and high end, as the statistic is; NaN where all draws were.

    Example:
      >>> bootstrap_interval(np.median, [0.5, 0.5, 0.5])
      (np.float64(0.5), np.float64(0.5))
    """
    rng = np.random.default_rng(seed)
    drawn = (
        statistic(*(rng.choice(sample, len(sample)) for sample in samples))
        for _ in range(num_resamples)
    )
    tail = (1 - level) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of all being NaN
        low, high = np.nanquantile(np.array(list(drawn)), [tail, 1 - tail], axis=0)
    return low, high
