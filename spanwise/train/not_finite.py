"""Gradients that are not finite: passed over, and the end of the run when they keep coming."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors.torch import save_file

from spanwise.runlog import RunError, writing
from spanwise.train.objective import TrainRows

MOST_IN_A_ROW = 3
"""So many optimizer steps in a row without a finite loss and gradient end the run."""


class NotFiniteError(RunError):
    """Loss or gradient were not finite ``MOST_IN_A_ROW`` times in a row.

    Args:
      rows: The last minibatch.
    """

    def __init__(self, rows: TrainRows) -> None:
        super().__init__(f"loss or gradient were not finite {MOST_IN_A_ROW} times in a row")
        self.rows = rows


@dataclass(kw_only=True)
class Skips:
    """Counts the optimizer steps that are passed over.

    Example:
      >>> skips = Skips()
      >>> for finite in (False, False, True, False):
      ...     skips.count(finite, rows=None)
      >>> skips.in_a_row
      1
    """

    in_a_row: int = 0
    """The newest so many were not finite."""

    def count(self, finite: bool, rows: TrainRows) -> None:
        """Count an optimizer step.

        Raises:
          NotFiniteError: with its rows, if it is one too many.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise NotFiniteError(rows)


def save_for_study(rows: TrainRows, folder: Path, step: int) -> Path:
    """Write a minibatch down: its tensors by name, and which of them are not finite.

    Returns:
      The file with the tensors; a JSON file of the same name lies beside it.
    """
    named = {f.name: getattr(rows, f.name) for f in fields(rows)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in named.items() if v is not None}
    counts = {k: int((~v.isfinite()).sum()) for k, v in tensors.items() if v.is_floating_point()}
    path = folder / "not_finite" / f"step_{step:05d}.safetensors"
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
        record = {"step": step, "rows": len(rows.tokens), "not_finite": counts}
        path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
