"""Weights that make up for tokens drawn from another distribution than the trainer's.

The engine that samples and the trainer that recomputes log-probs never agree in the last
bit, and often not in the third: other kernels, another precision, weights of a step
before. Credit is then given to tokens that the policy itself would have drawn more or
less often. With q the distribution that was drawn from and p the trainer's policy at the
start of the update, the ratio of a span k is the product over its tokens:

    r_k = exp( sum over the tokens t of span k of (log p_t - log q_t) )

References:
  Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training, 2025,
  fengyao.notion.site/off-policy-rl (truncated weights for engine mismatch).
  Ionides, Truncated Importance Sampling, 2008.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spanwise.losses.ratio import MAX_LOG_RATIO
from spanwise.spans import mask_of, require_same_shape, span_lengths, span_means


def importance_ratio(logprobs: Tensor, sampling_logprobs: Tensor, spans: Tensor) -> Tensor:
    """How much likelier a span is under the policy than where it was drawn from.

        r_k = exp( sum over the tokens t of span k of (logp_t - drawn_t) )

    Unlike ``span_ratio`` this is the product and not its geometric mean: only the product
    turns an expectation over one distribution into one over the other. It also grows more
    extreme with every token.

    Limits: 1 where both agree; ``by_token`` spans give the ratio of each token.

    Args:
      logprobs: ``[N, T]`` float, under the policy at the start of the update; ignored where
        masked, NaN included.
      sampling_logprobs: ``[N, T]`` float, under the distribution drawn from; likewise.
      spans: ``[N, T]`` int64 span numbers, -1 where masked.

    Returns:
      ``[N, T]`` at each token the ratio of its span, in float32 or wider, detached, 1 where
      masked; between exp(-20) and exp(20).

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> policy, drawn = torch.tensor([[0.5, 0.5, 0.1, 0.9]]), torch.full((1, 4), 0.25)
      >>> ratio = importance_ratio(policy.log(), drawn.log(), torch.tensor([[0, 0, -1, 1]]))
      >>> [round(r, 4) for r in ratio[0].tolist()]
      [4.0, 4.0, 1.0, 3.6]
    """
    require_same_shape(logprobs=logprobs, sampling_logprobs=sampling_logprobs, spans=spans)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    differences = logprobs.detach().to(dtype) - sampling_logprobs.detach()
    log_ratios = torch.where(mask_of(spans), differences, 0)
    sums = span_means(log_ratios, spans) * span_lengths(spans)
    return sums.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def importance_weights(
    logprobs: Tensor, sampling_logprobs: Tensor, spans: Tensor, *, truncate: float
) -> Tensor:
    """The importance ratio, cut from above.

        w_k = min(r_k, truncate)

    The gradient of a loss weighted so is, in expectation, that of the policy's own draws.
    Cutting trades some of that for a bounded variance: a token is counted too little,
    never too much.

    Limits: a bound that no ratio reaches leaves the estimate unbiased where a span holds
    all that its credit depends on (``whole``; for a single turn, ``turn``). Finer spans
    leave out how the tokens before came about: less variance, some bias.

    Args:
      logprobs: As in ``importance_ratio``, like all other tensors.
      sampling_logprobs: ``[N, T]``.
      spans: ``[N, T]``.
      truncate: The largest weight, above 0.

    Returns:
      ``[N, T]`` detached, in ``(0, truncate]``; 1 where masked (or ``truncate`` if smaller).

    Raises:
      ValueError: if the shapes differ or the bound is not above 0.

    Example:
      >>> policy, drawn = torch.tensor([[0.5, 0.5, 0.1, 0.9]]), torch.full((1, 4), 0.25)
      >>> spans = torch.tensor([[0, 0, -1, 1]])
      >>> importance_weights(policy.log(), drawn.log(), spans, truncate=2.0).tolist()
      [[2.0, 2.0, 1.0, 2.0]]
    """
    if not truncate > 0:
        raise ValueError(f"truncate is the largest weight, above 0, got {truncate}")
    return importance_ratio(logprobs, sampling_logprobs, spans).clamp(max=truncate)


def within_bound(
    logprobs: Tensor, sampling_logprobs: Tensor, spans: Tensor, *, bound: float
) -> Tensor:
    """Which tokens lie in spans that both distributions find about as likely.

        1 / bound <= r_k <= bound

    Limits: a bound of infinity keeps everything. Note that ``r_k`` is a product: a bound
    that suits tokens drops most long rows.

    Args:
      logprobs: As in ``importance_ratio``, like all other tensors.
      sampling_logprobs: ``[N, T]``.
      spans: ``[N, T]``.
      bound: At least 1.

    Returns:
      ``[N, T]`` bool, False where masked; with a finite bound also in spans beyond it or
      with a ratio that is NaN.

    Raises:
      ValueError: if the shapes differ or the bound is below 1.

    Example:
      >>> policy, drawn = torch.tensor([[0.5, 0.5, 0.1, 0.9]]), torch.full((1, 4), 0.25)
      >>> spans = torch.tensor([[0, 0, -1, 1]])
      >>> within_bound(policy.log(), drawn.log(), spans, bound=3.8).tolist()
      [[False, False, False, True]]
    """
    if not bound >= 1:
        raise ValueError(
            f"bound is at least 1, as ratios stay within [1/bound, bound], got {bound}"
        )
    if math.isinf(bound):
        return mask_of(spans)
    ratio = importance_ratio(logprobs, sampling_logprobs, spans)
    return mask_of(spans) & (ratio >= 1 / bound) & (ratio <= bound)
