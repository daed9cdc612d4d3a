"""The span recurrence on GPUs, written in Triton. See ``spanwise.kernels`` for what it returns.

Triton comes with torch's builds for GPUs. With ``TRITON_INTERPRET=1`` in the environment
before the first import, its interpreter runs the same code on CPU tensors; that is how it
is tested where there is no GPU.
"""

from __future__ import annotations

# Triton's language is not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingParameterType=false
# pyright: reportUnknownParameterType=false, reportIndexIssue=false
# pyright: reportUntypedFunctionDecorator=false, reportMissingImports=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from spanwise.kernels import NAN_REWARD

CHUNK = 1024
"""Places of a row that are worked on at once."""


def span_recurrence(
    rewards: Tensor, values: Tensor, spans: Tensor, *, gamma: float, lam: Tensor, bootstrap: Tensor
) -> Tensor:
    """The advantages of ``advantages.span_advantages``, added up in the dtype of ``values``."""
    out = torch.empty_like(rewards, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    num_rows, num_places = spans.shape
    # A number passed by itself would reach the kernel in float32.
    decays = torch.stack([torch.full_like(lam, gamma), gamma * lam]).to(out.dtype)
    never_scored = torch.empty(num_rows, dtype=torch.int32, device=out.device)
    with torch.cuda.device_of(out):
        _span_recurrence[(num_rows,)](
            rewards.contiguous(),
            values.contiguous(),
            spans.contiguous(),
            decays,
            bootstrap.contiguous(),
            out,
            never_scored,
            num_rows,
            num_places,
            chunk=min(CHUNK, triton.next_power_of_2(num_places)),
        )
    if bool(never_scored.any()):
        raise ValueError(NAN_REWARD)
    return out


@triton.jit
def _span_recurrence(
    rewards,
    values,
    spans,
    decays,
    bootstrap,
    out,
    never_scored,
    num_rows,
    num_places,
    chunk: tl.constexpr,
):
    """One row, chunk after chunk from its end; each place is read from memory once.

    Within a chunk two scans from the right: one finds the next model token of every place,
    one composes the maps ``A_next -> delta + decay * A_next``. A masked place changes
    nothing in either.
    """
    row = tl.program_id(0).to(tl.int64)
    start_of_row = row * num_places
    gamma = tl.load(decays + row)
    at_boundary = tl.load(decays + num_rows + row)
    advantage_after = gamma * 0
    value_after = tl.load(bootstrap + row)
    span_after = tl.full([], -1, tl.int64)
    found_nan = tl.full([], 0, tl.int32)
    here = tl.arange(0, chunk)
    num_chunks = tl.cdiv(num_places, chunk)
    for from_end in range(num_chunks):
        place = (num_chunks - 1 - from_end) * chunk + here
        inside = place < num_places
        span = tl.load(spans + start_of_row + place, mask=inside, other=-1)
        reward = tl.load(rewards + start_of_row + place, mask=inside, other=0.0)
        value = tl.load(values + start_of_row + place, mask=inside, other=0.0)
        of_model = span >= 0
        found_nan |= tl.max((of_model & (reward != reward)).to(tl.int32), axis=0)

        # The same places shifted by one, which the cache still holds.
        one_more = place + 1 < num_places
        next_span = tl.load(spans + start_of_row + place + 1, mask=one_more, other=-1)
        next_value = tl.load(values + start_of_row + place + 1, mask=one_more, other=0.0)
        next_span, next_value = tl.associative_scan(
            (next_span, next_value), 0, _nearest, reverse=True
        )
        next_value = tl.where(next_span >= 0, next_value, value_after)
        next_span = tl.where(next_span >= 0, next_span, span_after)

        delta = reward - value + gamma * next_value
        decay = tl.where(span == next_span, gamma, at_boundary)
        decay, advantage = tl.associative_scan(
            (tl.where(of_model, decay, 1.0), tl.where(of_model, delta, 0.0)),
            0,
            _composed,
            reverse=True,
        )
        advantage += decay * advantage_after
        stored = tl.where(of_model, advantage, 0.0)
        tl.store(out + start_of_row + place, stored, mask=inside)

        first = here == 0
        advantage_after = tl.sum(tl.where(first, advantage, 0.0), axis=0)
        value_after = tl.sum(tl.where(first, next_value, 0.0), axis=0)
        span_after = tl.sum(tl.where(first, next_span, 0), axis=0)
    tl.store(never_scored + row, found_nan)


@triton.jit
def _nearest(later_span, later_value, span, value):
    """Span and value of the place itself, or where it is masked of the nearest after it."""
    own = span >= 0
    return tl.where(own, span, later_span), tl.where(own, value, later_value)


@triton.jit
def _composed(later_decay, later_sum, decay, total):
    """``x -> total + decay * x`` after ``x -> later_sum + later_decay * x``."""
    return decay * later_decay, total + decay * later_sum
