"""The clipped surrogate of PPO over any span: PPO, GRPO, DAPO, GSPO and AT²PO."""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.losses.kl import kl_k3
from spanwise.losses.ratio import Ratio, token_gradient_ratio
from spanwise.spans import mask_of, require_same_shape, span_lengths


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
      - ``clip_share_low`` and ``clip_share_high``: share of the tokens whose gradient is cut
        because a negative (positive) advantage meets a ratio below (above) the range;
      - ``clip_span_share_low`` and ``_high``: the same, every span counting once (by the
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
      >>> loss.tolist(), metrics["clip_share_high"].item()
      ([[-1.25, 1.0]], 0.5)

    References:
      Schulman et al., PPO, arXiv:1707.06347.
      Ye et al., Mastering Complex Control, arXiv:1912.09729 (dual clip).
      Yu et al., DAPO, arXiv:2503.14476 (unequal clip limits).
    """
    require_same_shape(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        ratio_spans=ratio_spans,
    )
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(
            f"clip_low must lie in [0, 1] and clip_high be at least 0, got {clip_low}, {clip_high}"
        )
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    mask = mask_of(ratio_spans)
    advantages = torch.where(mask, advantages.detach(), 0)
    ratios = ratio(logprobs, old_logprobs, ratio_spans)
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(-ratios * advantages, -clipped * advantages)
    if dual_clip is not None:
        bounded = torch.minimum(losses, -dual_clip * advantages)
        losses = torch.where(advantages < 0, bounded, losses)
    with torch.no_grad():
        low = (ratios < 1 - clip_low) & (advantages < 0)
        high = (ratios > 1 + clip_high) & (advantages > 0)
        metrics = _metrics(logprobs, old_logprobs, ratios, ratio_spans, low, high)
    return torch.where(mask, losses, 0), metrics


def _metrics(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ratios: Tensor,
    spans: Tensor,
    low: Tensor,
    high: Tensor,
) -> dict[str, Tensor]:
    mask = mask_of(spans)
    per_token = mask.to(ratios.dtype)
    per_span = torch.where(mask, 1 / span_lengths(spans).clamp(min=1).to(ratios.dtype), 0)

    def mean(x: Tensor, weights: Tensor) -> Tensor:
        total = weights.sum()
        return (x * weights).sum() / torch.where(total > 0, total, 1)

    return {
        "ratio_mean": mean(ratios, per_token),
        "ratio_min": torch.where(mask, ratios, torch.inf).amin(),
        "ratio_max": torch.where(mask, ratios, -torch.inf).amax(),
        "clip_share_low": mean(low, per_token),
        "clip_share_high": mean(high, per_token),
        "clip_span_share_low": mean(low, per_span),
        "clip_span_share_high": mean(high, per_span),
        "approx_kl": mean(kl_k3(old_logprobs, logprobs, mask), per_token),
    }
