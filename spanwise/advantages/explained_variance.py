"""How much of its targets a critic explains."""

from __future__ import annotations

import torch
from torch import Tensor


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> float:
    """The share of the targets' variance that the values account for.

        1 - Var(G - V) / Var(G)

    Limits: 1 for values that equal the targets up to a constant; 0 for constant values;
    below 0 for values worse than that. 0 by convention if the targets are all alike but for
    rounding.

    Args:
      values: ``[N, T]`` float; ignored where masked.
      targets: ``[N, T]`` float, what was to be predicted.
      mask: ``[N, T]`` bool, True on the tokens that count.

    Returns:
      A number up to 1; 0 if nothing counts.

    Example:
      >>> explained_variance(torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.0, 2.0, 0.0]]),
      ...                    torch.tensor([[True, True, False]]))
      0.75
    """
    wanted = targets[mask].double()
    predicted = values[mask].double()
    missed = wanted - predicted
    if wanted.numel() == 0:
        return 0.0
    # Targets are sums with the values in them, so they are rounded where the values are large.
    scale = float(torch.maximum(wanted.abs(), predicted.abs()).max())
    if float(wanted.max() - wanted.min()) <= 8 * torch.finfo(targets.dtype).eps * scale:
        return 0.0
    return float(1 - missed.var(correction=0) / wanted.var(correction=0))
