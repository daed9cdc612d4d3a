"""The clipped surrogate over any span, in three forms: PPO's, CISPO's and SAPO's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from spanwise.kernels import kernels_for
from spanwise.losses.ratio import MAX_LOG_RATIO, Ratio, token_gradient_ratio
from spanwise.spans import mask_of, require_same_shape, require_spans, span_lengths

Clip = Literal["hard", "detached", "soft"]
"""What becomes of a token whose ratio leaves the range: see ``clipped_surrogate``."""

Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Ratios and advantages to losses and their slopes in the ratio."""


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    ratio_spans: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Ratio = token_gradient_ratio,
    clip: Clip = "hard",
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Raise the probability of what did better, until the span's ratio leaves the clip range.

        hard:      loss_t = - min( s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t )
                   with dual_clip = c and A_t < 0:  loss_t = min( the above, -c A_t )
        detached:  loss_t = - stopgrad(clip(s_t, 1 - clip_low, 1 + clip_high)) A_t logp_t
        soft:      loss_t = - 4 d A_t sigmoid((s_t - 1) / d),
                   d = clip_high if A_t > 0 else clip_low

    Outside the range a ``hard`` clip cuts the gradient of what went too far already; a
    ``detached`` one (CISPO) bounds its weight and cuts no token's; a ``soft`` one (SAPO, with
    temperatures 1 / d) lets it fade, to 79% of the policy gradient's at a distance of d. The
    gradient of ``detached`` runs through the logarithm of the ratio: each token's own log-prob,
    or with ``span_ratio`` the mean of its span.

    Limits: ``by_token`` spans are PPO, GRPO and DAPO (``clip_high > clip_low``); ``whole``
    ones GSPO; ``by_turn`` ones AT²PO, where 3e-3 and 4e-3 are usual. At equal log-probs
    the gradient is ``-A_t * grad logp_t``, the policy gradient, in every form; a ``detached``
    clip to a range of 0 has it at any log-probs (GPG).

    Args:
      logprobs: ``[N, T]`` float, under the policy that is trained; ignored where masked.
      old_logprobs: ``[N, T]`` float, at the start of the update; ignored where masked.
      advantages: ``[N, T]`` float; ignored where masked. Not differentiated through.
      ratio_spans: ``[N, T]`` int64, the spans that share a ratio, -1 where masked.
      clip_low: How far below 1 a ratio may fall, in ``[0, 1]``; above 0 if ``soft``.
      clip_high: How far above 1 a ratio may rise, at least 0; above 0 if ``soft``.
      ratio: ``token_gradient_ratio`` or ``span_ratio``.
      clip: ``hard``, ``detached`` or ``soft``, as above.
      dual_clip: Above 1: bounds the loss of a bad token that became much more likely. For a
        ``hard`` clip alone.

    Returns:
      The loss ``[N, T]`` per token, 0 where masked, not yet averaged; and metrics, detached
      scalars over the model tokens given:

      - ``ratio_mean``, ``ratio_min``, ``ratio_max``;
      - ``clip_frac/token_low`` and ``_high``: share of the tokens whose negative (positive)
        advantage meets a ratio below (above) the range, which cuts, bounds or fades their
        gradient;
      - ``clip_frac/span_low`` and ``_high``: the same, every span counting once (by the
        share of its tokens that are clipped);
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
      MiniMax, MiniMax-M1, arXiv:2506.13585 (CISPO).
      Gao et al., Soft Adaptive Policy Optimization, arXiv:2511.20347 (SAPO).
      Chu et al., GPG, arXiv:2504.02546.
    """
    require_same_shape(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, ratio_spans=ratio_spans
    )
    if fault := clip_fault(clip, clip_low, clip_high, dual_clip):
        raise ValueError(fault)
    require_spans(ratio_spans)
    ratios = ratio(logprobs, old_logprobs, ratio_spans)
    with torch.no_grad():
        estimates = (old_logprobs - logprobs.to(ratios.dtype)).clamp_(min=-MAX_LOG_RATIO)
        estimates = torch.expm1(-estimates) + estimates  # k3, see ``losses.kl``
    limits = (1 - clip_low, 1 + clip_high, math.inf if dual_clip is None else dual_clip)
    form = None
    if clip == "detached":
        form = partial(_detached_losses, logprobs.detach(), limits)
    elif clip == "soft":
        form = partial(_soft_losses, clip_low, clip_high)
    arguments = ratios, advantages.detach(), ratio_spans, estimates, limits, form
    losses, sums = _Clipped.apply(*arguments)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("Tensor", losses), _metrics(cast("Tensor", sums))


def clip_fault(clip: str, clip_low: float, clip_high: float, dual_clip: float | None) -> str | None:
    """What is wrong with the limits of a clip, in one line, or None.

    Example:
      >>> clip_fault("hard", 0.2, 0.28, None), clip_fault("hard", 0.2, 0.2, 1.0)
      (None, 'dual_clip must be above 1, got 1.0')
    """
    if clip not in get_args(Clip):
        return f"clip is {', '.join(get_args(Clip)[:-1])} or {get_args(Clip)[-1]}, got {clip}"
    got = f"got {clip_low} and {clip_high}"
    if clip == "soft" and not (0 < clip_low < math.inf and 0 < clip_high < math.inf):
        return f"clip_low and clip_high of a soft clip must be above 0 and finite, {got}"
    if clip != "soft" and not (0 <= clip_low <= 1 and clip_high >= 0):
        return f"clip_low must lie in [0, 1] and clip_high be at least 0, {got}"
    if dual_clip is not None and not dual_clip > 1:
        return f"dual_clip must be above 1, got {dual_clip}"
    if dual_clip is not None and clip != "hard":
        return f"dual_clip bounds a hard clip; a {clip} one has its own bound: leave dual_clip out"
    return None


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
        form: Form | None,
    ) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(ratios)
        clipped = kernels.clipped_losses if kernels is not None else _clipped_losses
        advantages = advantages.to(ratios.dtype)
        losses, slopes, sums = clipped(ratios, advantages, spans, estimates, limits)
        if form is not None:  # not the hard one
            losses, slopes = (torch.where(mask_of(spans), x, 0) for x in form(ratios, advantages))
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(sums)
        return losses, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradients[0] * slopes, None, None, None, None, None


def _detached_losses(
    logprobs: Tensor, limits: tuple[float, float, float], ratios: Tensor, advantages: Tensor
) -> tuple[Tensor, Tensor]:
    """A bounded weight on the log-prob. Its slope in the ratio is that in log s, over s."""
    weighed = -ratios.clamp(limits[0], limits[1]) * advantages
    return weighed * logprobs, weighed / ratios.clamp(min=math.exp(-MAX_LOG_RATIO))


def _soft_losses(
    clip_low: float, clip_high: float, ratios: Tensor, advantages: Tensor
) -> tuple[Tensor, Tensor]:
    """A gate that closes with the distance from 1, on either side."""
    high, low = ratios.new_tensor([clip_high, clip_low])
    distances = torch.where(advantages > 0, high, low)
    gates = torch.sigmoid((ratios - 1) / distances)
    return -4 * distances * gates * advantages, -4 * gates * (1 - gates) * advantages


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
