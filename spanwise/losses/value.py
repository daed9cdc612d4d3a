"""The loss of the critic."""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.spans import require_same_shape


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None = None
) -> Tensor:
    """Half the squared error of the critic, optionally without reward for large moves.

        loss_t = (V_t - G_t)^2 / 2
        with clip: the larger of this and the same with V_t held in old_t +- clip

    Args:
      values: ``[N, T]`` float, of the critic that is trained; ignored where masked.
      old_values: ``[N, T]`` float, at the start of the update; read only with ``clip``.
      returns: ``[N, T]`` float targets, from ``advantages.span_returns``.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      clip: In units of reward, above 0; a value further than this from the old one is not
        drawn further on.

    Returns:
      ``[N, T]`` in squared units of reward, 0 where masked, not yet averaged.

    Raises:
      ValueError: if the shapes differ or ``clip`` is not above 0.

    Example:
      >>> value_loss(torch.tensor([[0.5]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]),
      ...            torch.tensor([[True]]), clip=0.25).tolist()
      [[0.28125]]
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, or None for no clipping, got {clip}")
    dtype = torch.promote_types(values.dtype, torch.float32)
    values = torch.where(mask, values.to(dtype), 0)
    returns = torch.where(mask, returns.detach().to(dtype), 0)
    losses = (values - returns).square() / 2
    if clip is None:
        return losses
    old_values = torch.where(mask, old_values.detach().to(dtype), 0)
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(losses, (near - returns).square() / 2)
