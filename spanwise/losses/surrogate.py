"""The clipped surrogate of PPO over any span: PPO, GRPO, DAPO, GSPO and AT²PO."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from spanwise.kernels import kernels_for
from spanwise.losses.ratio import Ratio, token_gradient_ratio
from spanwise.spans import mask_of, require_same_shape, require_spans, span_lengths


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    ratio_spans: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Ratio = token_gradient_ratio,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the probability of what did better, until the span's ratio leaves the clip range.

        loss_t = - min( s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t )
        with dual_clip = c and A_t < 0:  loss_t = min( the above, -c A_t )

    Limits: ``by_token`` spans are PPO, GRPO and DAPO (``clip_high > clip_low``); ``whole``
    ones GSPO; ``by_turn`` ones AT²PO, where 3e-3 and 4e-3 are usual. At equal log-probs
    the loss is ``-A_t`` and its gradient ``-A_t * grad logp_t``, the policy gradient.

    Args:
      logprobs: ``[N, T]`` float, under the policy that is trained; ignored where masked.
      old_logprobs: ``[N, T]`` float, at the start of the update; ignored where masked.
      advantages: ``[N, T]`` float; ignored where masked. Not differentiated through.
      ratio_spans: ``[N, T]`` int64, the spans that share a ratio, -1 where masked.
      clip_low: How far below 1 a ratio may fall, in ``[0, 1]``.
      clip_high: How far above 1 a ratio may rise, at least 0.
      ratio: ``token_gradient_ratio`` or ``span_ratio``.
      dual_clip: Above 1: bounds the loss of a bad token that became much more likely.

    Returns:
      The loss ``[N, T]`` per token, 0 where masked, not yet averaged; and metrics, detached
      scalars over the model tokens given:

      - ``ratio_mean``, ``ratio_min``, ``ratio_max``;
      - ``clip_frac/token_low`` and ``_high``: share of the tokens whose gradient is cut
        because a negative (positive) advantage meets a ratio below (above) the range;
      - ``clip_frac/span_low`` and ``_high``: the same, every span counting once (by the
        share of its tokens that are cut);
      - ``approx_kl``: k3 estimate of KL(old || trained) per token, in nats.

      Without model tokens the shares, ``ratio_mean`` and ``approx_kl`` are 0, and the
      extremes infinite.

    Raises:
      ValueError: if the shapes differ or a limit is out of range.

    Example:
      Ratios 2 and 1, good token and bad token: the first is clipped at 1.25.

      >>> loss, metrics = clipped_surrogate(
      ...     torch.tensor([[2.0, 1.0]]).log(), torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]),
      ...     torch.tensor([[0, 1]]), clip_low=0.25, clip_high=0.25)
      >>> loss.tolist(), metrics["clip_frac/token_high"].item()
      ([[-1.25, 1.0]], 0.5)

    References:
      Schulman et al., PPO, arXiv:1707.06347.
      Ye et al., Mastering Complex Control, arXiv:1912.09729 (dual clip).
      Yu et al., DAPO, arXiv:2503.14476 (unequal clip limits).
    """
    require_same_shape(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, ratio_spans=ratio_spans
    )
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(
            f"clip_low must lie in [0, 1] and clip_high be at least 0, got {clip_low}, {clip_high}"
        )
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    require_spans(ratio_spans)
    ratios = ratio(logprobs, old_logprobs, ratio_spans)
    with torch.no_grad():
        estimates = old_logprobs - logprobs.to(ratios.dtype)
        estimates = torch.expm1(-estimates) + estimates  # k3, see ``losses.kl``
    limits = (1 - clip_low, 1 + clip_high, math.inf if dual_clip is None else dual_clip)
    losses, sums = _Clipped.apply(ratios, advantages.detach(), ratio_spans, estimates, limits)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("Tensor", losses), _metrics(cast("Tensor", sums))


class _Clipped(torch.autograd.Function):
    """Losses and what the metrics are made of, in one pass; the slope is found on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        ratios: Tensor,
        advantages: Tensor,
        spans: Tensor,
        estimates: Tensor,
        limits: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(ratios)
        clipped = kernels.clipped_losses if kernels is not None else _clipped_losses
        advantages = advantages.to(ratios.dtype)
        losses, slopes, sums = clipped(ratios, advantages, spans, estimates, limits)
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(sums)
        return losses, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradients[0] * slopes, None, None, None, None


def _clipped_losses(
    ratios: Tensor,
    advantages: Tensor,
    spans: Tensor,
    estimates: Tensor,
    limits: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """``RowKernels.clipped_losses`` in plain torch, for where there is no kernel."""
    least, most, bound = limits
    mask = mask_of(spans)
    advantages = torch.where(mask, advantages, 0)
    low = (ratios < least) & (advantages < 0)
    high = (ratios > most) & (advantages > 0)
    # The minimum of the two products is the clipped one exactly where the gradient is cut.
    cut = low | high
    used = torch.where(cut, ratios.clamp(least, most), ratios)
    bounded = mask & (advantages < 0) & (used > bound)
    used = torch.where(bounded, bound, used)
    losses = torch.where(mask, -used * advantages, 0)
    slopes = torch.where(mask & ~(cut | bounded), -advantages, 0)
    shares = torch.where(mask, 1 / span_lengths(spans).clamp(min=1), 0)
    sums = [
        mask,
        shares,
        torch.where(mask, ratios, 0),
        low,
        high,
        low * shares,
        high * shares,
        torch.where(mask, estimates, 0),
    ]
    totals = torch.stack([x.sum(1, dtype=torch.float64) for x in sums], 1)
    if spans.shape[1] == 0:
        ratios, mask = ratios.new_ones(len(spans), 1), mask.new_zeros(len(spans), 1)
    extremes = [
        torch.where(mask, ratios, torch.inf).amin(1, keepdim=True),
        torch.where(mask, ratios, -torch.inf).amax(1, keepdim=True),
    ]
    return losses, slopes, torch.cat([totals, *(x.double() for x in extremes)], 1)


def _metrics(sums: Tensor) -> dict[str, Tensor]:
    """The metrics from the sums over each row, ``[N, 10]``."""
    tokens, spans, ratios, low, high, low_spans, high_spans, estimates = sums[:, :8].sum(0)
    infinite = sums.new_full((1, 2), torch.inf) * torch.tensor([1, -1], device=sums.device)
    extremes = torch.cat([infinite, sums[:, 8:]])
    num_tokens, num_spans = tokens.clamp(min=1), spans.clamp(min=1)
    metrics = {
        "ratio_mean": ratios / num_tokens,
        "ratio_min": extremes[:, 0].amin(),
        "ratio_max": extremes[:, 1].amax(),
        "clip_frac/token_low": low / num_tokens,
        "clip_frac/token_high": high / num_tokens,
        "clip_frac/span_low": low_spans / num_spans,
        "clip_frac/span_high": high_spans / num_spans,
        "approx_kl": estimates / num_tokens,
    }
    return {name: figure.float() for name, figure in metrics.items()}
