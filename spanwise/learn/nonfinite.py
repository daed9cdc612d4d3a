"""Gradients that are not finite: passed over, and the end of the run when they keep coming."""

from __future__ import annotations

from dataclasses import dataclass

from spanwise.batch import Batch
from spanwise.errors import SpanwiseError

MOST_IN_A_ROW = 3
"""So many optimizer steps in a row without a finite loss and gradient end the run."""


class NonfiniteError(SpanwiseError):
    """Loss or gradient were not finite ``MOST_IN_A_ROW`` times in a row.

    Args:
      rows: The last minibatch.
    """

    def __init__(self, rows: Batch) -> None:
        super().__init__(f"loss or gradient were not finite {MOST_IN_A_ROW} times in a row")
        self.rows = rows


@dataclass(kw_only=True)
class NonfiniteCounter:
    """Counts the optimizer steps that are passed over.

    Example:
      >>> nonfinite = NonfiniteCounter()
      >>> for finite in (False, False, True, False):
      ...     nonfinite.count(finite, rows=None)
      >>> nonfinite.in_a_row
      1
    """

    in_a_row: int = 0
    """Number of newest steps that were not finite."""

    def count(self, finite: bool, rows: Batch) -> None:
        """Count an optimizer step.

        Raises:
          NonfiniteError: with its rows, if it is one too many.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise NonfiniteError(rows)
