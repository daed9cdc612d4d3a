"""Logits and uniforms to tokens: one inverse CDF in float64 for all rows of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spanwise.samplers.base import Sampling

_KEY_BITS = 128


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One token for each row."""

    tokens: list[int]
    logprobs: list[float]
    """Log-probs under the model at temperature 1; not finite where the logits are not."""

    sampling_logprobs: list[float]
    """Log-probs under the distribution drawn from."""


def uniforms(seed: int, count: int) -> np.ndarray:
    """One uniform number in [0, 1) for each token position of a turn.

    They come from a counter-based generator keyed by the seed, so that position ``t``
    gets the same number whatever the batch and however many positions are asked for.

    Returns:
      ``[count]`` float64.

    Example:
      >>> bool((uniforms(7, 3) == uniforms(7, 5)[:3]).all())
      True
    """
    key = seed % (1 << _KEY_BITS)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw_tokens(logits: Tensor, uniform: Sequence[float], sampling: Sequence[Sampling]) -> Draws:
    """Draw one token a row: the first whose cumulative probability exceeds the uniform.

    With ``w`` the probabilities at the row's temperature, those that ``top_k`` and then
    ``top_p`` drop set to 0, and ``W`` their running sum, the token is the first ``i`` with
    ``W_i > u * W_last``. Temperature 0 takes the most likely token, the first of equals;
    its sampling log-prob is 0. A row's result depends on that row alone, bit for bit.
    ``logits`` are ``[R, V]`` float; there is a number and a setting for each of the R rows.

    Example:
      >>> draws = draw_tokens(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), [0.49, 0.5],
      ...                     [Sampling(), Sampling()])
      >>> draws.tokens, [round(x, 4) for x in draws.logprobs]
      ([0, 1], [-0.6931, -0.6931])
    """
    device = logits.device
    greedy = [s.temperature == 0 for s in sampling]
    temperatures = [s.temperature or 1.0 for s in sampling]
    scaled = logits.double() / _column(temperatures, device)
    weights = scaled.softmax(-1)
    if any(s.top_k or s.top_p < 1 for s in sampling):
        weights = weights.where(_kept(weights, sampling), 0.0)
    cumulative = weights.cumsum(-1)
    thresholds = _column(uniform, device) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, thresholds, right=True)
    # Only a row of NaN can reach past the end: u * total < total in float64 for every u < 1.
    tokens = tokens.clamp_(max=logits.shape[1] - 1)
    if any(greedy):
        best = logits.argmax(-1, keepdim=True)
        tokens = torch.where(torch.tensor(greedy, device=device)[:, None], best, tokens)

    logprobs = logits.float().log_softmax(-1).gather(1, tokens)[:, 0].tolist()
    drawn = (weights.gather(1, tokens) / cumulative[:, -1:])[:, 0].tolist()
    return Draws(
        tokens=tokens[:, 0].tolist(),
        logprobs=logprobs,
        # math.log, because a vectorised log rounds by the place in the batch.
        sampling_logprobs=[
            0.0 if g else math.log(p) if p > 0 else math.nan
            for g, p in zip(greedy, drawn, strict=True)
        ],
    )


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None]


def _kept(weights: Tensor, sampling: Sequence[Sampling]) -> Tensor:
    """``[R, V]`` bool: the tokens that top-k, then top-p of what is left, keep."""
    device, size = weights.device, weights.shape[1]
    top_k = _column([s.top_k or size for s in sampling], device)
    top_p = _column([s.top_p for s in sampling], device)
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    kept = torch.arange(size, device=device) < top_k
    ordered = ordered.where(kept, 0.0)
    cumulative = ordered.cumsum(-1)
    before = cumulative - ordered
    kept &= (before < top_p * cumulative[:, -1:]) | (top_p >= 1)
    return torch.zeros_like(kept).scatter_(1, order, kept)
