"""Where spans begin: partitions of the tokens that the model sampled.

A span is the run of model tokens that makes one decision. One partition says where
credit is bootstrapped (``advantages.span_advantages``), another, or the same one, over
which tokens the policy ratio is averaged (``losses.span_ratio``).

Every partition is an int64 tensor ``[N, T]``: the number of the span that a token
belongs to, counted from 0 along each row, and -1 where ``mask`` is False. Environment
tokens are stepped over: the token "before" a model token is the model token before it,
so a span may go on across an observation.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal, cast

import torch
from torch import Tensor

from spanwise.kernels import kernels_for

NAN_SCORE = "{} is NaN at a token sampled by the model; leave that row out"

Side = Literal["start", "end"]
"""On which side of a low-probability token the boundary lies.

``start``: before it, so that it opens a span. ``end``: after it, so that it closes one.
"""


def by_token(mask: Tensor) -> Tensor:
    """Every model token is a span of its own.

    The partition of GAE, and of the PPO, GRPO and DAPO ratio.

    Args:
      mask: ``[N, T]`` bool, True on tokens sampled by the model.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Example:
      >>> by_token(torch.tensor([[True, True, False, True]])).tolist()
      [[0, 1, -1, 2]]
    """
    _check_mask(mask)
    return _numbered(mask, mask)


def by_turn(mask: Tensor) -> Tensor:
    """Every maximal run of model tokens is a span: one turn of an agent.

    The partition of turn-level advantages and of the AT²PO ratio.

    Args:
      mask: ``[N, T]`` bool, True on tokens sampled by the model.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Example:
      >>> by_turn(torch.tensor([[True, True, False, True]])).tolist()
      [[0, 0, -1, 1]]
    """
    _check_mask(mask)
    before = torch.nn.functional.pad(mask[:, :-1], (1, 0))
    return _numbered(mask & ~before, mask)


def whole(mask: Tensor) -> Tensor:
    """All model tokens of a row are one span.

    The partition of Monte Carlo advantages and of the GSPO ratio.

    Args:
      mask: ``[N, T]`` bool, True on tokens sampled by the model.

    Returns:
      ``[N, T]`` int64: 0, and -1 where ``mask`` is False.

    Example:
      >>> whole(torch.tensor([[True, True, False, True]])).tolist()
      [[0, 0, -1, 0]]
    """
    _check_mask(mask)
    return mask.to(torch.int64) - 1


def fixed_length(mask: Tensor, length: int) -> Tensor:
    """Every ``length`` model tokens are a span; the last one of a row may be shorter.

    Limits: ``length=1`` is ``by_token``; a length no row exceeds is ``whole``.

    Args:
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      length: Model tokens per span, at least 1.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Raises:
      ValueError: if ``length`` is below 1.

    Example:
      >>> fixed_length(torch.tensor([[True, True, False, True]]), 2).tolist()
      [[0, 0, -1, 1]]
    """
    _check_mask(mask)
    if length < 1:
        raise ValueError(f"a span holds at least 1 token, got length={length}")
    numbers = torch.div(mask.cumsum(1) - 1, length, rounding_mode="floor")
    return torch.where(mask, numbers, -1)


def by_probability(
    logprobs: Tensor, mask: Tensor, *, threshold: float = 0.2, side: Side = "start"
) -> Tensor:
    """A boundary at every token that was unlikely when it was sampled: the segments of SAE.

    A token below the threshold is where the model chose, the likely tokens after it only
    carry the choice out.

    Limits: ``threshold=0`` is ``whole``; a threshold above 1 is ``by_token``.

    Args:
      logprobs: ``[N, T]`` float, log-probs of the sampled tokens; ignored where masked.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      threshold: Probability, at least 0; a token strictly below it makes a boundary.
      side: The unlikely token opens a span (``start``) or closes one (``end``).
        The first model token of a row opens span 0 in either case.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Raises:
      ValueError: if the threshold is negative, or a model token has no log-prob (NaN).

    Example:
      >>> logprobs = torch.tensor([[0.9, 0.1, 0.8, 0.7]]).log()
      >>> mask = torch.tensor([[True, True, False, True]])
      >>> by_probability(logprobs, mask, threshold=0.2).tolist()
      [[0, 1, -1, 1]]
      >>> by_probability(logprobs, mask, threshold=0.2, side="end").tolist()
      [[0, 0, -1, 1]]

    The paper's indices are off by one, so the side can be read in two ways. Its recurrence
    (Eq. 9 and 10) has the trace decay between ``t`` and ``t + 1`` where token ``t + 1`` is
    unlikely. In code, where ``V_t`` is read before token ``t``, that is ``start``: the value
    before the choice is trusted. But it counts tokens from 1 (Eq. 5) and states from 0 (Eq. 3, 6,
    11): taken literally, state ``t`` comes after token ``t``, the value once the choice is made
    is trusted, and that is ``end``. ``docs/conventions.md`` computes both.

    References:
      Gong et al., Segmental Advantage Estimation, arXiv:2601.07320, Eq. 5, 6, 9, 10.
    """
    _check_mask(mask)
    require_same_shape(logprobs=logprobs, mask=mask)
    if not threshold >= 0:
        raise ValueError(f"threshold is a probability, at least 0, got {threshold}")
    limit = math.log(threshold) if threshold > 0 else -math.inf
    kernels = kernels_for(logprobs)
    if kernels is None:
        _check_scores("logprobs", logprobs, mask)
        return _bounded(logprobs < limit, mask, side)
    # In the precision of the log-probs, as torch would compare them.
    limit = torch.tensor(limit, dtype=logprobs.dtype).item()
    wide = logprobs.detach().to(torch.promote_types(logprobs.dtype, torch.float32))
    spans = kernels.spans_below(wide, mask, limit=limit, closes=_closes(side))
    if spans is None:
        raise ValueError(NAN_SCORE.format("logprobs"))
    return spans


def by_mean_length(
    logprobs: Tensor, mask: Tensor, *, mean_length: float, side: Side = "start"
) -> Tensor:
    """Boundaries at the least likely tokens of the batch, as many as give a mean length.

    ``by_probability`` with the threshold that adapts to the batch: spans stay equally
    long while the policy grows surer. Tokens with the same log-prob are never told
    apart, so a tie at the threshold makes spans longer than asked for, never shorter.

    Limits: ``mean_length=1`` is ``by_token``; ``math.inf`` is ``whole`` (without ties).

    Args:
      logprobs: ``[N, T]`` float, log-probs of the sampled tokens; ignored where masked.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      mean_length: Model tokens per span over the batch, at least 1. A row has at least
        one span, so no mean above that of ``whole`` can be had.
      side: As in ``by_probability``.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Raises:
      ValueError: if ``mean_length`` is below 1, or a model token has no log-prob (NaN).

    Example:
      >>> logprobs = torch.tensor([[0.9, 0.1, 0.8, 0.4]]).log()
      >>> by_mean_length(logprobs, torch.ones(1, 4, dtype=torch.bool), mean_length=2).tolist()
      [[0, 1, 1, 1]]
    """
    _check_scores("logprobs", logprobs, mask)
    if not mean_length >= 1:
        raise ValueError(f"a span holds at least 1 token, got mean_length={mean_length}")
    order = mask.cumsum(1)
    at_edge = order == (1 if side == "start" else order[:, -1:])  # no span boundary there
    candidates = logprobs[mask & ~at_edge]
    num_tokens, num_rows = int(mask.sum()), int(mask.any(1).sum())
    num_boundaries = max(0, round(num_tokens / mean_length) - num_rows)
    if num_boundaries >= candidates.numel():
        return by_token(mask)
    limit = torch.kthvalue(candidates, num_boundaries + 1).values
    return _bounded(logprobs < limit, mask, side)


def by_entropy(entropies: Tensor, mask: Tensor, *, quantile: float) -> Tensor:
    """Tokens drawn from a high-entropy distribution open a span.

    Limits: ``quantile=1`` is ``whole``.

    Args:
      entropies: ``[N, T]`` float, nats, of the distribution each token was drawn from;
        ignored where masked.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      quantile: In ``[0, 1]``. A token opens a span if its entropy is strictly above this
        quantile of the batch's model tokens: 0.8 lets the upper fifth do so.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Raises:
      ValueError: if ``quantile`` is out of range, or a model token has no entropy (NaN).

    Example:
      >>> entropies = torch.tensor([[0.3, 0.1, 0.9, 0.2]])
      >>> by_entropy(entropies, torch.ones(1, 4, dtype=torch.bool), quantile=0.75).tolist()
      [[0, 0, 1, 1]]
    """
    _check_scores("entropies", entropies, mask)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}")
    of_model = entropies[mask]
    if of_model.numel() == 0:
        return whole(mask)
    # An order statistic, not torch.quantile: that one refuses more than 16M elements.
    limit = torch.kthvalue(of_model, _rank(quantile, of_model.numel())).values
    return _bounded(entropies > limit, mask, "start")


def by_delimiter(tokens: Tensor, mask: Tensor, *, delimiters: Collection[int]) -> Tensor:
    """A delimiter, such as a newline, closes its span.

    The partition of step-level value methods. Two delimiters in a row make a span of
    the second alone.

    Args:
      tokens: ``[N, T]`` int token ids; ignored where masked.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      delimiters: The token ids that close a span.

    Returns:
      ``[N, T]`` int64 span numbers, -1 where ``mask`` is False.

    Example:
      >>> tokens = torch.tensor([[5, 9, 9, 6]])
      >>> by_delimiter(tokens, torch.tensor([[True, True, False, True]]), delimiters={9}).tolist()
      [[0, 0, -1, 1]]
    """
    _check_mask(mask)
    require_same_shape(tokens=tokens, mask=mask)
    ids = torch.tensor(sorted(delimiters), dtype=tokens.dtype, device=tokens.device)
    return _bounded(torch.isin(tokens, ids), mask, "end")


def mask_of(spans: Tensor) -> Tensor:
    """The mask that a partition was made from: ``[N, T]`` bool, True on model tokens.

    Raises:
      ValueError: if ``spans`` is not an int64 tensor ``[N, T]``.

    Example:
      >>> mask_of(torch.tensor([[0, -1, 1]])).tolist()
      [[True, False, True]]
    """
    require_spans(spans)
    return spans >= 0


def span_means(x: Tensor, spans: Tensor) -> Tensor:
    """The mean over its span, at every token of the span.

    Args:
      x: ``[N, T]`` float; ignored where masked, NaN included.
      spans: ``[N, T]`` int64 span numbers, -1 where masked.

    Returns:
      ``[N, T]``, 0 where masked. The gradient of a mean goes to its tokens in equal
      parts, and none to masked places.

    Example:
      >>> span_means(torch.tensor([[1.0, 3.0, 9.0, 5.0]]), torch.tensor([[0, 0, -1, 1]])).tolist()
      [[2.0, 2.0, 0.0, 5.0]]
    """
    require_same_shape(x=x, spans=spans)
    require_spans(spans)
    return cast("Tensor", _SpanMeans.apply(x, spans))  # pyright: ignore[reportUnknownMemberType]


def span_lengths(spans: Tensor) -> Tensor:
    """The number of tokens in its span, at every token: ``[N, T]`` int64, 0 where masked.

    Example:
      >>> span_lengths(torch.tensor([[0, 0, -1, 1]])).tolist()
      [[2, 2, 0, 1]]
    """
    require_spans(spans)
    kernels = kernels_for(spans)
    if kernels is not None:
        return kernels.span_lengths(spans)
    mask = mask_of(spans)
    index = spans.clamp(min=0)
    counts = torch.zeros_like(spans).scatter_add(1, index, mask.to(torch.int64))
    return torch.where(mask, counts.gather(1, index), 0)


def span_statistics(spans: Tensor) -> dict[str, float]:
    """How many spans there are and how long they are, for the log.

    Args:
      spans: ``[N, T]`` int64 span numbers, -1 where masked.

    Returns:
      ``num_spans``; ``span_length_mean`` and the percentiles ``span_length_p10``,
      ``_p50``, ``_p90`` in model tokens (a percentile is the least length that this share
      of the spans does not exceed); ``span_open_share``, the share of model tokens that
      open a span. All 0 if there are no model tokens.

    Example:
      >>> span_statistics(torch.tensor([[0, 0, -1, 0, 1]]))["span_length_mean"]
      2.0
    """
    opens = _opens(spans)
    num_spans, num_tokens = int(opens.sum()), int(mask_of(spans).sum())
    lengths = span_lengths(spans)[opens].sort().values

    def percentile(share: float) -> float:
        return float(lengths[_rank(share, num_spans) - 1]) if num_spans else 0.0

    return {
        "num_spans": float(num_spans),
        "span_length_mean": num_tokens / num_spans if num_spans else 0.0,
        "span_length_p10": percentile(0.1),
        "span_length_p50": percentile(0.5),
        "span_length_p90": percentile(0.9),
        "span_open_share": num_spans / num_tokens if num_tokens else 0.0,
    }


def require_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors that would broadcast in silence.

    Raises:
      ValueError: if the shapes differ; it names each tensor and its shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"these tensors must share one shape: {listed}")


def require_spans(spans: Tensor) -> None:
    """Refuse what cannot be a partition.

    Raises:
      ValueError: if ``spans`` is not an int64 tensor ``[N, T]``.
    """
    if spans.dtype != torch.int64 or spans.dim() != 2:
        raise ValueError(
            "spans must be int64 [N, T], -1 where masked, such as by_turn(mask) returns; "
            f"got {spans.dtype} {tuple(spans.shape)}"
        )


class _SpanMeans(torch.autograd.Function):
    """Means over spans. The map is its own transpose: the gradient is averaged alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spans: Tensor) -> Tensor:
        ctx.save_for_backward(spans)
        working = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        kernels = kernels_for(x)
        means = kernels.span_means if kernels is not None else _scattered_means
        return means(working, spans).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (spans,) = ctx.saved_tensors
        return span_means(gradients[0], spans), None


def _scattered_means(x: Tensor, spans: Tensor) -> Tensor:
    mask = mask_of(spans)
    index = spans.clamp(min=0)  # a masked place adds 0 to span 0
    sums = torch.zeros_like(x).scatter_add(1, index, torch.where(mask, x, 0)).gather(1, index)
    return torch.where(mask, sums / span_lengths(spans).clamp(min=1), 0)


def _bounded(marked: Tensor, mask: Tensor, side: Side) -> Tensor:
    """Spans with a boundary before (``start``) or after (``end``) each marked token."""
    marked = marked & mask
    if _closes(side):
        return torch.where(mask, marked.cumsum(1) - marked.to(torch.int64), -1)
    return _numbered(marked | (mask.cumsum(1) == 1), mask)


def _closes(side: Side) -> bool:
    """Whether a marked token closes its span, once it is known to do that or open one."""
    if side not in ("start", "end"):
        raise ValueError(f'side must be "start" or "end", got {side!r}')
    return side == "end"


def _numbered(opens: Tensor, mask: Tensor) -> Tensor:
    """Span numbers from the tokens that open one; each row's first model token must."""
    return torch.where(mask, (opens & mask).cumsum(1) - 1, -1)


def _opens(spans: Tensor) -> Tensor:
    """True on the first token of each span."""
    # Numbers never fall along a row, so the running maximum is the number of the newest
    # model token, and stays it across an observation.
    newest = torch.cummax(spans, 1).values if spans.numel() else spans
    before = torch.nn.functional.pad(newest[:, :-1], (1, 0), value=-1)
    return mask_of(spans) & (spans > before)


def _rank(share: float, count: int) -> int:
    """The 1-based rank of the least element that this share of ``count`` does not exceed."""
    # The product is rounded first: 0.07 * 100 is a little above 7 in floating point.
    return max(1, math.ceil(round(share * count, 9)))


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(
            "mask must be bool [N, T], True on tokens sampled by the model; "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )


def _check_scores(name: str, scores: Tensor, mask: Tensor) -> None:
    _check_mask(mask)
    require_same_shape(**{name: scores, "mask": mask})
    if bool((scores.isnan() & mask).any()):
        raise ValueError(NAN_SCORE.format(name))
