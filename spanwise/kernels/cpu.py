"""The loops for CPUs, compiled by numba. See ``spanwise.kernels`` for what each returns.

Sums are kept in float64 whatever the dtype: on a CPU it costs nothing, and a result in
float32 is then the exact one, rounded once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from spanwise.kernels import NAN_REWARD

MIN_PART = 1 << 18
"""Elements that are worth a thread of their own."""

SPAN_TOO_LARGE = "a span number is not below the number of places in a row"


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in machine code that runs without the interpreter's lock.

    Indices in the loops are unsigned: numba need not ask whether they count from the end.
    """
    options = {"nogil": True, "fastmath": {"contract"}}  # a * b + c may be rounded once
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder to keep the code in: it is compiled in every process
        return numba.njit(function, **options)


def span_recurrence(
    rewards: Tensor, values: Tensor, spans: Tensor, *, gamma: float, lam: Tensor, bootstrap: Tensor
) -> Tensor:
    """The advantages of ``advantages.span_advantages``."""
    out = torch.empty_like(rewards, memory_format=torch.contiguous_format)
    _over_rows(_span_recurrence, (rewards, values, spans, lam, bootstrap, out), gamma)
    return out


def clipped_losses(
    ratios: Tensor,
    advantages: Tensor,
    spans: Tensor,
    estimates: Tensor,
    limits: tuple[float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, slopes and sums of ``losses.clipped_surrogate``."""
    losses, slopes = (
        torch.empty_like(ratios, memory_format=torch.contiguous_format) for _ in range(2)
    )
    sums = torch.zeros(len(spans), 10, dtype=torch.float64)
    arrays = (ratios, advantages, spans, estimates, losses, slopes, sums)
    _over_rows(_clipped_losses, arrays, *limits)
    return losses, slopes, sums


def spans_below(scores: Tensor, mask: Tensor, *, limit: float, closes: bool) -> Tensor | None:
    """The partition of ``spans.by_probability``; None if a model token's score is NaN."""
    out = torch.empty(scores.shape, dtype=torch.int64)
    found_nan = torch.zeros(len(scores), dtype=torch.bool)
    _over_rows(_spans_below, (scores, mask, found_nan, out), limit, closes)
    return None if bool(found_nan.any()) else out


def span_means(x: Tensor, spans: Tensor) -> Tensor:
    """The mean over its span, at every token of the span."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _over_rows(_span_means, (x, spans, out))
    return out


def span_lengths(spans: Tensor) -> Tensor:
    """The number of tokens in its span, at every token of the span."""
    out = torch.empty_like(spans, memory_format=torch.contiguous_format)
    _over_rows(_span_lengths, (spans, out))
    return out


@_compiled
def _span_recurrence(
    rewards: Any, values: Any, spans: Any, lam: Any, bootstrap: Any, out: Any, gamma: float
) -> None:
    num_rows, num_places = spans.shape
    never_scored = False
    for i in range(num_rows):
        row_rewards, row_values, row_spans, row_out = rewards[i], values[i], spans[i], out[i]
        next_value = np.float64(bootstrap[i])
        next_span = np.int64(-1)
        at_boundary = gamma * np.float64(lam[i])
        advantage = 0.0
        for from_end in range(num_places):
            t = np.uint64(num_places - 1 - from_end)
            span = row_spans[t]
            if span < 0:
                row_out[t] = 0
            else:
                reward = np.float64(row_rewards[t])
                value = np.float64(row_values[t])
                never_scored |= np.isnan(reward)
                delta = reward - value + gamma * next_value
                decay = gamma if span == next_span else at_boundary
                advantage = delta + decay * advantage
                next_value = value
                next_span = span
                row_out[t] = advantage
    if never_scored:
        raise ValueError(NAN_REWARD)


@_compiled
def _clipped_losses(
    ratios: Any,
    advantages: Any,
    spans: Any,
    estimates: Any,
    losses: Any,
    slopes: Any,
    sums: Any,
    least: float,
    most: float,
    bound: float,
) -> None:
    num_rows, num_places = spans.shape
    counts = np.zeros((3, num_places), np.int64)  # tokens of each span; cut below; cut above
    for i in range(num_rows):
        num_tokens = 0
        num_spans = 0
        total_ratio, total_estimate = 0.0, 0.0
        smallest, largest = np.inf, -np.inf
        for place in range(num_places):
            t = np.uint64(place)
            span = spans[i, t]
            if span < 0:
                losses[i, t] = 0
                slopes[i, t] = 0
                continue
            if span >= num_places:
                raise ValueError(SPAN_TOO_LARGE)
            ratio, advantage = np.float64(ratios[i, t]), np.float64(advantages[i, t])
            low = (ratio < least) & (advantage < 0)
            high = (ratio > most) & (advantage > 0)
            used = least if low else (most if high else ratio)
            bounded = (advantage < 0) & (used > bound)
            losses[i, t] = -advantage * (bound if bounded else used)
            slopes[i, t] = 0 if low | high | bounded else -advantage
            k = np.uint64(span)
            counts[0, k] += 1
            counts[1, k] += low
            counts[2, k] += high
            num_spans = max(num_spans, span + 1)
            num_tokens += 1
            total_ratio += ratio
            total_estimate += estimates[i, t]
            smallest, largest = min(smallest, ratio), max(largest, ratio)
        row = sums[i]
        row[0], row[2], row[7] = num_tokens, total_ratio, total_estimate
        row[8], row[9] = smallest, largest
        for k in range(num_spans):
            length = counts[0, k]
            if length:
                row[1] += 1
                row[3] += counts[1, k]
                row[4] += counts[2, k]
                row[5] += counts[1, k] / length
                row[6] += counts[2, k] / length
            counts[0, k] = counts[1, k] = counts[2, k] = 0


@_compiled
def _spans_below(
    scores: Any, mask: Any, found_nan: Any, out: Any, limit: float, closes: bool
) -> None:
    num_rows, num_places = mask.shape
    for i in range(num_rows):
        row_scores, row_mask, row_out = scores[i], mask[i], out[i]
        span = 0
        empty = True  # no model token yet: the first opens span 0, marked or not
        any_nan = False
        for place in range(num_places):
            t = np.uint64(place)
            score = row_scores[t]
            any_nan |= row_mask[t] & np.isnan(score)
            marked = row_mask[t] & (score < limit)
            span += marked & (not closes) & (not empty)
            row_out[t] = span if row_mask[t] else -1
            empty &= not row_mask[t]
            span += closes & marked
        found_nan[i] = any_nan


@_compiled
def _span_means(x: Any, spans: Any, out: Any) -> None:
    num_rows, num_places = spans.shape
    sums = np.empty(num_places)
    counts = np.empty(num_places, np.int64)
    for i in range(num_rows):
        row, row_spans, row_out = x[i], spans[i], out[i]
        num_spans = 0
        for place in range(num_places):
            t = np.uint64(place)
            span = row_spans[t]
            if span >= num_places:
                raise ValueError(SPAN_TOO_LARGE)
            while num_spans <= span:
                sums[np.uint64(num_spans)] = 0
                counts[np.uint64(num_spans)] = 0
                num_spans += 1
            if span >= 0:
                sums[np.uint64(span)] += row[t]
                counts[np.uint64(span)] += 1
        for k in range(num_spans):
            sums[k] /= max(1, counts[k])
        for place in range(num_places):
            t = np.uint64(place)
            span = row_spans[t]
            row_out[t] = sums[np.uint64(span)] if span >= 0 else 0


@_compiled
def _span_lengths(spans: Any, out: Any) -> None:
    num_rows, num_places = spans.shape
    counts = np.empty(num_places, np.int64)
    for i in range(num_rows):
        row_spans, row_out = spans[i], out[i]
        num_spans = 0
        for place in range(num_places):
            span = row_spans[np.uint64(place)]
            if span >= num_places:
                raise ValueError(SPAN_TOO_LARGE)
            while num_spans <= span:
                counts[np.uint64(num_spans)] = 0
                num_spans += 1
            if span >= 0:
                counts[np.uint64(span)] += 1
        for place in range(num_places):
            t = np.uint64(place)
            span = row_spans[t]
            row_out[t] = counts[np.uint64(span)] if span >= 0 else 0


def _over_rows(kernel: Callable[..., None], tensors: tuple[Tensor, ...], *options: float) -> None:
    """Run a kernel on parts of the rows, as many at once as torch has threads.

    Threads of Python's own: those of OpenMP, which numba and torch would each start, wait for
    one another where another process is at work, and do not survive a fork.
    """
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    num_rows = len(arrays[0])
    num_parts = min(torch.get_num_threads(), num_rows, arrays[0].size // MIN_PART)
    if num_parts <= 1:
        kernel(*arrays, *options)
        return
    cuts = [num_rows * part // num_parts for part in range(num_parts + 1)]
    pool = _pool(num_parts - 1)
    running = [
        pool.submit(kernel, *(array[start:stop] for array in arrays), *options)
        for start, stop in pairwise(cuts[1:])
    ]
    kernel(*(array[: cuts[1]] for array in arrays), *options)
    for part in running:
        part.result()


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="spanwise-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
