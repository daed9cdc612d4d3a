"""The policy ratio of a span, in two forms with the same values and other gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spanwise.spans import mask_of, require_same_shape, span_means

MAX_LOG_RATIO = 20.0
"""Nats at which a log-ratio is cut, so that the ratio is finite: in float32 e^89 is not."""

Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logprobs, old_logprobs, spans) -> [N, T]``: ``span_ratio`` or ``token_gradient_ratio``."""


def span_ratio(logprobs: Tensor, old_logprobs: Tensor, spans: Tensor) -> Tensor:
    """The geometric mean of the token ratios of a span, at each of its tokens.

    The mean makes a long span no more extreme than a short one, and the span is clipped
    as a whole: it was one decision.

        s_k = exp( mean over the tokens t of span k of (logp_t - old_t) )

    The gradient runs through the mean: every token of the span gets the same,
    ``s_k / |k|`` for each token of the span that the loss weighs.

    Limits: ``by_token`` spans are the PPO ratio, ``whole`` ones the GSPO ratio. A mean
    log-ratio above 20 counts as 20, so that the ratio is finite, and its gradient stays what
    it is there: a bad span that became far likelier still gets one. (verl cuts the gradient,
    too, at 20, and for GSPO as ATPO at 10.)

    Args:
      logprobs: ``[N, T]`` float, under the policy that is trained; ignored where masked.
      old_logprobs: ``[N, T]`` float, at the start of the update; ignored where masked.
      spans: ``[N, T]`` int64 span numbers, -1 where masked.

    Returns:
      ``[N, T]`` in float32 or wider, 1 and without gradient where masked.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> span_ratio(torch.tensor([[0.0, 2.0, -9.0, 0.0]]), torch.zeros(1, 4),
      ...            torch.tensor([[0, 0, -1, 1]])).tolist()
      [[2.7182817459106445, 2.7182817459106445, 1.0, 1.0]]

    References:
      Zheng et al., GSPO, arXiv:2507.18071.
      Zong et al., AT²PO, arXiv:2601.04767.
    """
    means = span_means(_log_ratios(logprobs, old_logprobs, spans), spans)
    return _exp_of_capped(means.detach(), means)


def token_gradient_ratio(logprobs: Tensor, old_logprobs: Tensor, spans: Tensor) -> Tensor:
    """The same ratio, whose gradient at a token runs through that token alone.

    The form of AT²PO and of GSPO-token: advantages that differ inside a span then move
    each token by its own.

        s_{k,t} = stopgrad(s_k) * exp(logp_t - stopgrad(logp_t))

    Limits: where advantages are constant over each span, the loss has the same gradient as
    with ``span_ratio``; ``by_token`` spans make the two the same.

    Args:
      logprobs: As in ``span_ratio``, like all other arguments.
      old_logprobs: ``[N, T]``.
      spans: ``[N, T]``.

    Returns:
      ``[N, T]`` in float32 or wider, 1 and without gradient where masked.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> logprobs = torch.zeros(1, 2, requires_grad=True)
      >>> ratio = token_gradient_ratio(logprobs, torch.zeros(1, 2), torch.tensor([[0, 0]]))
      >>> torch.autograd.grad(ratio[0, 0], logprobs)[0].tolist()
      [[1.0, 0.0]]

    References:
      Zheng et al., GSPO, arXiv:2507.18071, section 4.3.
    """
    log_ratios = _log_ratios(logprobs, old_logprobs, spans)
    return _exp_of_capped(span_means(log_ratios.detach(), spans), log_ratios)


def _exp_of_capped(means: Tensor, gradient_of: Tensor) -> Tensor:
    """``exp(means)``, capped, with the gradient of the other argument, capped or not."""
    return (means.clamp(max=MAX_LOG_RATIO) + (gradient_of - gradient_of.detach())).exp()


def _log_ratios(logprobs: Tensor, old_logprobs: Tensor, spans: Tensor) -> Tensor:
    """``logp - old`` in float32 or wider; 0 and without gradient where masked."""
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, spans=spans)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    differences = logprobs.to(dtype) - old_logprobs.detach()
    return torch.where(mask_of(spans), differences, 0)
