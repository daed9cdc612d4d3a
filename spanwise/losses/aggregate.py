"""Losses per token to one number.

Every mean divides by a count over the *whole* update. Give that count (``num_samples``,
``num_tokens``) when the update is split: the parts, whatever the split into micro-batches
or ranks, then add up to the loss and the gradient of the whole. Without it the call is
taken to be the whole. (Where the ranks' gradients are averaged instead of added, multiply
the loss by the number of ranks.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.spans import require_same_shape


def mean_by_sample(
    losses: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    num_samples: int | Tensor | None = None,
) -> Tensor:
    """The mean over rows of each row's mean over tokens (GRPO, GSPO, AT²PO).

    Every row counts alike, so a token of a long row counts less.

        1 / num_samples * sum over rows i of 1 / |y_i| * sum over tokens t of w_it l_it

    Args:
      losses: ``[N, T]`` float; ignored where masked, NaN included.
      mask: ``[N, T]`` bool, True on tokens sampled by the model; ``|y_i|`` counts them.
      weights: ``[N, T]`` float, for importance weights and shared turns. They do not enter
        the counts. Default: 1.
      num_samples: Rows with model tokens in the whole update. Default: those given.

    Returns:
      A scalar. A row without model tokens adds 0 and is not counted.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> losses = torch.tensor([[1.0, 3.0], [6.0, 9.0]])
      >>> mean_by_sample(losses, torch.tensor([[True, True], [True, False]])).item()
      4.0
    """
    lengths = mask.sum(1, keepdim=True)
    totals = _weighted(losses, mask, weights) / lengths.clamp(min=1)
    return totals.sum() / _denominator(num_samples, mask.any(1).sum())


def mean_by_token(
    losses: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    num_tokens: int | Tensor | None = None,
) -> Tensor:
    """The mean over all tokens (DAPO, PPO): every token counts alike.

        1 / num_tokens * sum over rows i and tokens t of w_it l_it

    Args:
      losses: ``[N, T]`` float; ignored where masked, NaN included.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      weights: ``[N, T]`` float; they do not enter the count. Default: 1.
      num_tokens: Model tokens in the whole update. Default: those given.

    Returns:
      A scalar, 0 without model tokens.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> losses = torch.tensor([[1.0, 2.0], [6.0, 9.0]])
      >>> mean_by_token(losses, torch.tensor([[True, True], [True, False]])).item()
      3.0
    """
    return _weighted(losses, mask, weights).sum() / _denominator(num_tokens, mask.sum())


def mean_by_constant(
    losses: Tensor,
    mask: Tensor,
    *,
    length: int,
    weights: Tensor | None = None,
    num_samples: int | Tensor | None = None,
) -> Tensor:
    """The mean over rows of each row's sum over a constant length (Dr. GRPO).

    Dividing by the row's own length makes long wrong answers cheap; a constant does not.

        1 / (num_samples * length) * sum over rows i and tokens t of w_it l_it

    Args:
      losses: ``[N, T]`` float; ignored where masked, NaN included.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      length: Tokens, at least 1, the same for the whole run: most often the limit on the
        length of a response.
      weights: ``[N, T]`` float; they do not enter the count. Default: 1.
      num_samples: Rows with model tokens in the whole update. Default: those given.

    Returns:
      A scalar. A row without model tokens adds 0 and is not counted.

    Raises:
      ValueError: if the shapes differ or ``length`` is below 1.

    Example:
      >>> losses = torch.tensor([[1.0, 2.0], [5.0, 9.0]])
      >>> mask = torch.tensor([[True, True], [True, False]])
      >>> mean_by_constant(losses, mask, length=4).item()
      1.0

    References:
      Liu et al., Understanding R1-Zero-Like Training, arXiv:2503.20783.
    """
    if length < 1:
        raise ValueError(f"length is a number of tokens, at least 1, got {length}")
    total = _weighted(losses, mask, weights).sum() / length
    return total / _denominator(num_samples, mask.any(1).sum())


def _weighted(losses: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted losses, 0 and without gradient where masked."""
    require_same_shape(losses=losses, mask=mask)
    # Each factor is masked by itself: 0 * NaN would send NaN back as a gradient.
    losses = torch.where(mask, losses, 0)
    if weights is None:
        return losses
    require_same_shape(losses=losses, weights=weights)
    return losses * torch.where(mask, weights.detach(), 0)


def _denominator(given: int | Tensor | None, counted: Tensor) -> Tensor:
    """The global count, or the one counted here; 1 instead of 0, as there is nothing to mean."""
    count = counted if given is None else torch.as_tensor(given, device=counted.device)
    return count.clamp(min=1)
