"""Correlations with bootstrap intervals over clusters, such as the prompts of tokens.

Tokens of one prompt are alike, so whole prompts are resampled. A resample gives every
prompt, and so each of its tokens, a count; all statistics here take counts as weights.

Shapes: K observations, B resamples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pearson(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The linear correlation of two samples, for each row of weights.

    Args:
      x: ``[K]`` or ``[B, K]`` float.
      y: ``[K]`` or ``[B, K]`` float.
      weights: ``[B, K]``, how often each observation counts.

    Returns:
      ``[B]`` in ``[-1, 1]``; NaN where x or y does not vary.

    Example:
      >>> x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
      >>> [round(r, 4) for r in pearson(x, y, torch.ones(1, 3)).tolist()]
      [0.5]
    """
    weights = weights.double()
    total = weights.sum(1, keepdim=True)
    x, y = x.double(), y.double()
    x = x - (weights * x).sum(1, keepdim=True) / total
    y = y - (weights * y).sum(1, keepdim=True) / total
    spread = (weights * x * x).sum(1) * (weights * y * y).sum(1)
    return (weights * x * y).sum(1) / spread.sqrt()


def mid_ranks(x: Tensor, weights: Tensor) -> Tensor:
    """The rank of each observation in its resample, the mean rank for equal ones.

    Args:
      x: ``[K]`` float.
      weights: ``[B, K]``, how often each observation counts.

    Returns:
      ``[B, K]`` float64, from 1.

    Example:
      >>> mid_ranks(torch.tensor([5.0, 7.0, 5.0]), torch.ones(1, 3)).tolist()
      [[1.5, 3.0, 1.5]]
    """
    weights = weights.double()
    values, place = x.unique(return_inverse=True)
    counts = weights.new_zeros(len(weights), len(values)).index_add(1, place, weights)
    ranks = counts.cumsum(1) - (counts - 1) / 2
    return ranks[:, place]


def spearman(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The correlation of the ranks: ``[B]``, see ``pearson``.

    Example:
      >>> x, y = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([1.0, 4.0, 9.0])
      >>> spearman(x, y, torch.ones(1, 3)).tolist()
      [1.0]
    """
    return pearson(mid_ranks(x, weights), mid_ranks(y, weights), weights)


def resample_weights(clusters: Tensor, num_resamples: int, seed: int) -> Tensor:
    """Counts of each observation when whole clusters are drawn with replacement.

    Args:
      clusters: ``[K]`` int64, the cluster of each observation, numbered from 0.
      num_resamples: ``B``.
      seed: Of the draws.

    Returns:
      ``[B, K]`` float64; all observations of a cluster have the same count.
    """
    num_clusters = int(clusters.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_clusters, (num_resamples, num_clusters), generator=generator)
    counts = torch.zeros(num_resamples, num_clusters, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return counts[:, clusters]


def interval(samples: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """The central interval of bootstrap statistics; NaN ones, of constant samples, left out.

    Example:
      >>> interval(torch.arange(101.0), level=0.9)
      (5.0, 95.0)
    """
    known = samples[~samples.isnan()].double()
    if known.numel() == 0:
        return math.nan, math.nan
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(known, ends)
    return round(float(low), 12), round(float(high), 12)
