"""Per-token estimates of KL(policy || reference) from tokens that the policy sampled.

All three see the log-prob of the sampled token only. They differ in bias and variance,
and a good estimate of the value need not have the gradient of the divergence:

    estimate   value                  gradient, when used as a loss
    k1         unbiased, may be < 0   0 in expectation: for rewards, not for losses
    k2         biased                 that of KL(policy || reference), unbiased
    k3         unbiased, never < 0    that of KL(reference || policy), the other direction

"Unbiased" holds for tokens drawn from the policy itself.

References:
  Schulman, Approximating KL Divergence, 2020, joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.losses.ratio import MAX_LOG_RATIO
from spanwise.spans import require_same_shape


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) by the log-ratio itself.

    Subtract it from the reward. As a loss it does nothing: its expected gradient is
    that of the total probability, 0.

        k1 = logp - ref

    Args:
      logprobs: ``[N, T]`` float, under the policy; ignored where masked.
      reference_logprobs: ``[N, T]`` float; ignored where masked, not differentiated.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.

    Returns:
      ``[N, T]`` in nats, 0 where masked; unbiased, of either sign.

    Example:
      >>> kl_k1(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.tensor([[True]])).tolist()
      [[0.5]]
    """
    return _log_ratios(logprobs, reference_logprobs, mask)


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) by half the squared log-ratio.

    The one to use as a loss: its expected gradient is that of the divergence.

        k2 = (logp - ref)^2 / 2

    Args:
      logprobs: As in ``kl_k1``, like all other arguments.
      reference_logprobs: ``[N, T]``.
      mask: ``[N, T]``.

    Returns:
      ``[N, T]`` in nats, 0 where masked; biased, close while the two policies are.

    Example:
      >>> kl_k2(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), torch.tensor([[True]])).tolist()
      [[0.125]]
    """
    return _log_ratios(logprobs, reference_logprobs, mask).square() / 2


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) by the log-ratio and a term of mean 0.

    The one to log: unbiased, never negative, of little variance. As a loss (GRPO) its
    expected gradient is that of KL(reference || policy).

        k3 = exp(ref - logp) - 1 - (ref - logp)

    Limits: where the reference finds a token more than 20 nats likelier than the policy does,
    the difference counts as 20, so that the estimate is finite (at most e^20 - 21), and the
    gradient, ``1 - exp(20)`` for ``logp``, is what it is there. TRL has no bound. verl and
    OpenRLHF also bound the estimate at 10 nats, which ``ref - logp`` = 2.6 reaches: a token that
    went further from the reference gets no gradient there, and the mean is biased.

    Args:
      logprobs: As in ``kl_k1``, like all other arguments.
      reference_logprobs: ``[N, T]``.
      mask: ``[N, T]``.

    Returns:
      ``[N, T]`` in nats, 0 where masked. It grows exponentially where the reference finds
      a token likelier than the policy does.

    Example:
      >>> kl_k3(torch.tensor([[-1.0]]), torch.tensor([[-1.0]]), torch.tensor([[True]])).tolist()
      [[0.0]]
    """
    log_ratios = _log_ratios(logprobs, reference_logprobs, mask)
    capped = log_ratios.detach().clamp(min=-MAX_LOG_RATIO) + (log_ratios - log_ratios.detach())
    return torch.expm1(-capped) + capped


def _log_ratios(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``logp - ref`` in float32 or wider; 0 and without gradient where masked."""
    require_same_shape(logprobs=logprobs, reference_logprobs=reference_logprobs, mask=mask)
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    return torch.where(mask, logprobs.to(dtype) - reference_logprobs.detach(), 0)
