"""Log-probs and entropies straight from hidden states, a few tokens at a time.

At 8,192 tokens and a vocabulary of 151,936 one array of float32 logits takes 5 GB, and a
plain forward and backward pass holds three of that size. Here only the logits of one chunk
exist at a time; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 26
"""Logits that exist at a time: 256 MB in float32."""

LEAST = -1e4
"""Stands for a log-prob of -inf where a product with probability 0 is taken."""


def logprobs_and_entropies(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The log-prob of each token, and the entropy of the distribution it was drawn from.

        z    = scale (W h + b)
        logp = z_token - log sum over the vocabulary of exp z
        H    = log sum exp z - sum over the vocabulary of p z

    Both have their gradient; it costs nothing where it is not asked for. A gradient has no
    gradient of its own.

    Args:
      hidden: ``[K, D]`` float, the last hidden state before each token.
      weight: ``[V, D]`` float, the output embeddings.
      tokens: ``[K]`` int64, in ``[0, V)``.
      bias: ``[V]`` float. Default: none.
      scale: Factor of the logits: that of the model, over the temperature.

    Returns:
      ``[K]`` log-probs and ``[K]`` entropies in nats, float32 or wider. Logits are computed
      in the dtype of ``hidden``, everything after them in float32 or wider.

    Raises:
      ValueError: if the shapes do not fit.

    Example:
      Logits ln 3 and 0: probabilities 3/4 and 1/4.

      >>> hidden, weight = torch.tensor([[3.0]]).log(), torch.tensor([[1.0], [0.0]])
      >>> logprobs, entropies = logprobs_and_entropies(hidden, weight, torch.tensor([1]))
      >>> round(logprobs.exp().item(), 4), round(entropies.item(), 4)
      (0.25, 0.5623)
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden must be [K, D] and weight [V, D]; "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if tokens.shape != hidden.shape[:1]:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} must be [K], one for each of the "
            f"{len(hidden)} rows of hidden"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must be [V] = [{len(weight)}]")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(weight):
        raise ValueError(f"tokens must lie in [0, {len(weight)}), the rows of weight")
    outputs = _ChunkedScores.apply(hidden, weight, bias, tokens, scale)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("tuple[Tensor, Tensor]", outputs)


class _ChunkedScores(torch.autograd.Function):
    """Saves its inputs and two numbers a token; the logits are not among them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        normalisers = torch.empty(len(hidden), 1, dtype=dtype, device=hidden.device)
        logprobs, entropies = torch.empty_like(normalisers), torch.empty_like(normalisers)
        room: Tensor | None = None
        for rows, logits in _logit_chunks(hidden, weight, bias, scale):
            room = torch.empty_like(logits) if room is None else room
            picked = logits.gather(1, tokens[rows, None])
            largest = logits.amax(1, keepdim=True)
            logits -= largest  # then no exponential overflows
            exponentials = torch.exp(logits, out=room[: len(logits)])
            total = exponentials.sum(1, keepdim=True)
            # A logit of -inf has p z = 0, and not 0 * -inf.
            weighted = _row_products(exponentials, logits.clamp_(min=LEAST))
            normalisers[rows] = largest + total.log()
            logprobs[rows] = picked - normalisers[rows]
            entropies[rows] = total.log() - weighted / total
        ctx.save_for_backward(hidden, weight, bias, tokens, normalisers, entropies)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return logprobs.squeeze(1), entropies.squeeze(1)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        of_logprobs, of_entropies = gradients
        if of_logprobs is None and of_entropies is None:
            return None, None, None, None, None
        hidden, weight, bias, tokens, normalisers, entropies = ctx.saved_tensors
        sums = [
            torch.zeros_like(x, dtype=normalisers.dtype) if needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        to_hidden, to_weight, to_bias = sums
        for rows, logits in _logit_chunks(hidden, weight, bias, ctx.scale):
            logits -= normalisers[rows]
            gradient = _logit_gradient(
                logits,
                tokens[rows, None],
                None if of_logprobs is None else of_logprobs[rows, None],
                None if of_entropies is None else of_entropies[rows, None],
                entropies[rows],
            )
            if ctx.scale != 1:
                gradient *= ctx.scale
            if to_bias is not None:
                to_bias += gradient.sum(0)
            gradient = gradient.to(weight.dtype)
            if to_hidden is not None:
                to_hidden[rows] = (gradient @ weight).to(to_hidden.dtype)
            if to_weight is not None and hidden.dtype == to_weight.dtype:
                to_weight.addmm_(gradient.T, hidden[rows])
            elif to_weight is not None:
                to_weight += gradient.T @ hidden[rows]
        to_hidden, to_weight, to_bias = (
            None if total is None else total.to(x.dtype)
            for x, total in zip((hidden, weight, bias), sums, strict=True)
        )
        return to_hidden, to_weight, to_bias, None, None


def _logit_gradient(
    logprobs: Tensor,
    tokens: Tensor,
    of_logprobs: Tensor | None,
    of_entropies: Tensor | None,
    entropies: Tensor,
) -> Tensor:
    """The gradient with respect to the logits, written over all log-probs ``[C, V]``.

    With g and e the gradients of log-prob and entropy, ``[C, 1]`` like all other arguments:

        g * (1 at the token - p) - e * p * (log p + H)
    """
    if of_entropies is None:
        gradient = logprobs.exp_()
        if of_logprobs is not None:
            gradient *= -of_logprobs
    else:
        probabilities = logprobs.exp()
        gradient = logprobs.clamp_(min=LEAST).add_(entropies).mul_(-of_entropies)
        if of_logprobs is not None:
            gradient -= of_logprobs
        gradient *= probabilities
    return gradient if of_logprobs is None else gradient.scatter_add_(1, tokens, of_logprobs)


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """The dot product of each row of ``a`` with that of ``b``, ``[C, 1]``."""
    return torch.linalg.vecdot(a, b).unsqueeze(1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> Iterator[tuple[slice, Tensor]]:
    """Logits of a few rows after another, in float32 or wider; each is overwritten by the next."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    size = min(len(hidden), max(1, CHUNK_ELEMENTS // len(weight)))
    # One buffer for all: fresh memory for every chunk would be paged in anew each time.
    room = torch.empty(size, len(weight), dtype=dtype, device=hidden.device)
    for start in range(0, len(hidden), size or 1):
        rows = slice(start, start + size)
        logits = room[: len(hidden[rows])]
        if hidden.dtype == dtype:
            torch.mm(hidden[rows], weight.T, out=logits)
        else:
            logits.copy_(hidden[rows] @ weight.T)
        if bias is not None:
            logits += bias
        if scale != 1:
            logits *= scale
        yield rows, logits
