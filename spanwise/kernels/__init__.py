"""Compiled inner loops behind the functions of ``spans`` and ``advantages``.

One pass over memory, where torch needs a dozen. They are an optimisation and nothing
else: every one of them has a form in plain torch, which is what runs where no kernel can.

On CPUs numba compiles the loops at the first call (seconds, then kept on disk).
It was chosen because it comes as a wheel wherever torch does: nothing is compiled when the
package is installed, and no C++ compiler is needed when it runs, as ``torch.compile`` and
C++ extensions of torch would. On GPUs the recurrence is written in Triton, which comes
with torch. Either is imported at the first call, not before.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor

NAN_REWARD = "a reward is NaN: rows that were never scored must be left out first"


class SpanRecurrence(Protocol):
    """A kernel for ``advantages.span_advantages``."""

    def __call__(
        self,
        rewards: Tensor,
        values: Tensor,
        spans: Tensor,
        *,
        gamma: float,
        lam: Tensor,
        bootstrap: Tensor,
    ) -> Tensor:
        """Rows ``[N, T]``, detached and of one dtype and device; ``lam`` and ``bootstrap`` ``[N]``.

        Raises:
          ValueError: if a reward is NaN where ``spans`` is not -1.
        """
        ...


class RowKernels(Protocol):
    """Kernels that treat every row ``[T]`` of their ``[N, T]`` arguments by itself.

    Arguments are detached and of one device. Masked places, where ``spans`` is -1, are not
    read. Results do not depend on the number of threads.
    """

    span_recurrence: SpanRecurrence

    def clipped_losses(
        self,
        ratios: Tensor,
        advantages: Tensor,
        spans: Tensor,
        estimates: Tensor,
        limits: tuple[float, float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``losses.clipped_surrogate``, once the ratios are known.

        Args:
          ratios: ``[N, T]``.
          advantages: ``[N, T]``.
          spans: ``[N, T]`` that share a ratio.
          estimates: ``[N, T]``, of a divergence; they are only added up.
          limits: Least and greatest ratio, and the greatest for bad tokens (dual clip).

        Returns:
          Losses ``[N, T]``, their slopes in the ratio ``[N, T]``, and float64 sums over each
          row ``[N, 10]``: tokens; spans; ratios; tokens cut below and above; spans cut below
          and above, each by the share of its tokens; estimates; least and greatest ratio.
        """
        ...

    def spans_below(
        self, scores: Tensor, mask: Tensor, *, limit: float, closes: bool
    ) -> Tensor | None:
        """Spans that each token scored below ``limit`` opens, or ``closes``.

        None if a score is NaN where ``mask`` is True.
        """
        ...

    def span_means(self, x: Tensor, spans: Tensor) -> Tensor:
        """``spans.span_means``."""
        ...

    def span_lengths(self, spans: Tensor) -> Tensor:
        """``spans.span_lengths``."""
        ...


def kernels_for(x: Tensor) -> RowKernels | None:
    """The kernels to use on tensors like ``x``, or None where plain torch must do."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return cast("RowKernels | None", _kernels("cpu"))


def recurrence_for(x: Tensor) -> SpanRecurrence | None:
    """The recurrence's kernel for tensors like ``x``: the one there is on GPUs, through Triton."""
    if x.device.type == "cuda" and not torch.compiler.is_compiling():
        kernels = _kernels("cuda")
        return None if kernels is None else kernels.span_recurrence
    kernels = kernels_for(x)
    return None if kernels is None else kernels.span_recurrence


@functools.cache
def _kernels(device: str) -> ModuleType | None:
    """None without numba or Triton, and if ``SPANWISE_KERNELS=0``, to tell what is at fault."""
    if os.environ.get("SPANWISE_KERNELS") == "0":
        return None
    try:
        return importlib.import_module(f"spanwise.kernels.{device}")
    except ImportError:
        return None
