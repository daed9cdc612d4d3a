"""Credit from a critic: GAE, SAE, turn-level GAE and Monte Carlo are one recurrence.

Shapes: N rows, T places of a row, C columns once the model tokens stand next to each
other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.kernels import NAN_REWARD, recurrence_for
from spanwise.spans import mask_of, require_same_shape, require_spans


def span_advantages(
    rewards: Tensor,
    values: Tensor,
    spans: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """Bootstrap from the value function at span boundaries only.

    GAE trusts the value before every token a little. Here a value is trusted only where
    one span hands over to the next; inside a span the errors telescope and the values
    there cancel:

        delta_t = r_t + gamma * V_next(t) - V_t
        A_t     = delta_t + gamma * lam_t * A_next(t)
        lam_t   = 1 if t and next(t) lie in the same span, else lam

    ``next(t)`` is the next model token of the row: environment tokens are stepped over.
    After the last model token A = 0, and V = 0 or ``bootstrap``.

    Limits: ``by_token`` spans are GAE; one ``whole`` span, and lam = 1 with any spans, are
    Monte Carlo (gamma = 1: return minus ``V_t``); lam = 0 is the value at the next
    boundary, plus the rewards on the way, minus ``V_t``.

    Args:
      rewards: ``[N, T]`` float, paid for the token; ignored where masked.
      values: ``[N, T]`` float, predicted before the token; ignored where masked.
      spans: ``[N, T]`` int64 span numbers, -1 where masked.
      gamma: Discount per model token, in ``[0, 1]``.
      lam: Trace decay per boundary, in ``[0, 1]``: one number, or ``[N]`` for each row.
      bootstrap: ``[N]`` float, value after the last model token of a truncated row, 0 for
        rows that ended. Default: 0 everywhere.

    Returns:
      ``[N, T]`` in units of reward, 0 where masked; detached, neither centred nor scaled.
      A NaN value reaches the earlier tokens of its row and no other.

    Raises:
      ValueError: if shapes differ, gamma or lam leaves ``[0, 1]``, or a reward is NaN.

    Example:
      Of the values inside the row only the last, at the boundary, counts for token 0:
      0.75 + lam * (1 - 0.75) - 0.5.

      >>> span_advantages(
      ...     rewards=torch.tensor([[0.0, 0.0, 0.0, 1.0]]),
      ...     values=torch.tensor([[0.5, 0.25, 9.0, 0.75]]),
      ...     spans=torch.tensor([[0, 0, -1, 1]]), lam=0.5).tolist()
      [[0.375, 0.625, 0.0, 0.25]]

    References:
      Schulman et al., Generalized Advantage Estimation, arXiv:1506.02438.
      Gong et al., Segmental Advantage Estimation, arXiv:2601.07320.
    """
    require_same_shape(rewards=rewards, values=values, spans=spans)
    require_spans(spans)
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    working = _working_dtype(dtype)
    num_rows = len(spans)
    lam_N = _checked_lambda(gamma, lam, num_rows, spans.device)
    if bootstrap is None:
        bootstrap = torch.zeros(num_rows, device=spans.device)
    elif bootstrap.shape != (num_rows,):
        raise ValueError(f"bootstrap must be [N] = [{num_rows}], got {tuple(bootstrap.shape)}")
    recurrence = recurrence_for(rewards) or _scanned_recurrence
    advantages = recurrence(
        rewards.detach().to(working),
        values.detach().to(working),
        spans,
        gamma=gamma,
        lam=lam_N,
        bootstrap=bootstrap.detach().to(working),
    )
    return advantages.to(dtype)


def span_returns(
    rewards: Tensor,
    values: Tensor,
    spans: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 1.0,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """What the critic is fitted to: advantages with a lam of their own, plus the values.

    The critic's lam is not the policy's: 1 keeps the target free of the critic's own
    errors, which a long row would otherwise hand on to itself (VC-PPO).

        G_t = A_t + V_t

    Limits: lam = 1 is the discounted sum of the rewards to come, whatever the values.

    Args:
      rewards: As in ``span_advantages``, like all other arguments.
      values: ``[N, T]``.
      spans: ``[N, T]``.
      gamma: Discount per model token.
      lam: The critic's trace decay per boundary.
      bootstrap: ``[N]``.

    Returns:
      ``[N, T]`` in units of reward, 0 where masked; detached.

    Raises:
      ValueError: as ``span_advantages``.

    Example:
      >>> span_returns(
      ...     rewards=torch.tensor([[0.0, 0.0, 1.0]]), values=torch.tensor([[0.5, 0.0, 0.25]]),
      ...     spans=torch.tensor([[0, -1, 1]]), gamma=0.5).tolist()
      [[0.5, 0.0, 1.0]]

    References:
      Yuan et al., What's Behind PPO's Collapse in Long-CoT?, arXiv:2503.01491.
    """
    advantages = span_advantages(rewards, values, spans, gamma=gamma, lam=lam, bootstrap=bootstrap)
    return torch.where(mask_of(spans), advantages + values.detach(), 0).to(advantages.dtype)


def length_adaptive_lambda(mask: Tensor, alpha: float = 0.05) -> Tensor:
    """The longer the row, the slower the trace decays (VAPO).

    With a fixed lam a terminal reward never reaches the start of a long row. Here the
    trace spans about the same share of every row, since the lams sum to 1 / (1 - lam):

        lam = 1 - 1 / (alpha * length)

    Limits: rows of ``1 / alpha`` model tokens or fewer (20 by default) would get a negative
    lam; they get 0, where the formula meets zero. Long rows tend to 1.

    Args:
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      alpha: Above 0; a larger one decays more slowly.

    Returns:
      ``[N]`` float in ``[0, 1)``, the ``lam`` of ``span_advantages``.

    Raises:
      ValueError: if ``alpha`` is not above 0.

    Example:
      >>> length_adaptive_lambda(torch.ones(1, 40, dtype=torch.bool)).tolist()
      [0.5]

    References:
      Yue et al., VAPO, arXiv:2504.05118.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    lengths = mask.sum(1).to(torch.get_default_dtype())
    return (1 - 1 / (alpha * lengths)).clamp(min=0)


def _scanned_recurrence(
    rewards: Tensor, values: Tensor, spans: Tensor, *, gamma: float, lam: Tensor, bootstrap: Tensor
) -> Tensor:
    """The recurrence in plain torch, for where there is no kernel."""
    mask = mask_of(spans)
    if bool((rewards.isnan() & mask).any()):
        raise ValueError(NAN_REWARD)
    counts = mask.sum(1)
    num_columns = int(counts.max()) if len(counts) else 0
    if num_columns == 0:
        return torch.zeros_like(rewards)
    # Model tokens move left; what is masked falls into one column more, which is cut off.
    column = torch.where(mask, mask.cumsum(1) - 1, num_columns)

    def compact(x: Tensor) -> Tensor:
        room = torch.zeros(len(x), num_columns + 1, dtype=x.dtype, device=x.device)
        return room.scatter_(1, column, x)[:, :num_columns]

    values_NC, spans_NC = compact(values), compact(spans)
    next_values_NC = torch.nn.functional.pad(values_NC[:, 1:], (0, 1))
    last = (counts - 1).clamp(min=0)[:, None]
    next_values_NC.scatter_(1, last, bootstrap[:, None])
    deltas_NC = compact(rewards) + gamma * next_values_NC - values_NC
    at_boundary = (gamma * lam).to(values.dtype)[:, None]
    same_span_NC = spans_NC[:, :-1] == spans_NC[:, 1:]
    decays_NC = torch.where(same_span_NC, torch.full_like(at_boundary, gamma), at_boundary)
    advantages_NC = _reverse_scan(deltas_NC, decays_NC)
    return torch.where(mask, advantages_NC.gather(1, column.clamp(max=num_columns - 1)), 0)


def _reverse_scan(deltas_NC: Tensor, decays_NC: Tensor) -> Tensor:
    """``A_c = delta_c + decay_c * A_{c+1}`` in log2(C) steps over all columns at once.

    After a step of width w, ``sums`` holds the terms of the next 2w columns and
    ``decays`` the product of the next 2w decays. In float32 the error is a few roundings,
    about twice that of a loop.
    """
    sums_NC = deltas_NC
    width = 1
    while width < deltas_NC.shape[1]:
        # ``decays`` has C - width columns: one for every column that has a partner.
        reached = sums_NC[:, :-width] + decays_NC * sums_NC[:, width:]
        sums_NC = torch.cat([reached, sums_NC[:, -width:]], dim=1)
        decays_NC = decays_NC[:, :-width] * decays_NC[:, width:]
        width *= 2
    return sums_NC


def _checked_lambda(
    gamma: float, lam: float | Tensor, num_rows: int, device: torch.device
) -> Tensor:
    """``lam`` as ``[N]`` float64, once it and ``gamma`` are known to be in range."""
    lam_N = torch.as_tensor(lam, dtype=torch.float64).detach()
    if lam_N.dim() > 1 or lam_N.numel() not in (1, num_rows):
        raise ValueError(f"lam is a number or [N] = [{num_rows}], got {tuple(lam_N.shape)}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if not bool(((lam_N >= 0) & (lam_N <= 1)).all()):
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    return lam_N.to(device).expand(num_rows)  # a number was checked without waiting for a GPU


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to add up in: float32 for half precision, else the tensor's own."""
    if not dtype.is_floating_point:
        raise ValueError(f"rewards or values must be float, got {dtype}")
    return torch.promote_types(dtype, torch.float32)
