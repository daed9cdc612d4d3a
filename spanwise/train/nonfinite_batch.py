"""The minibatch on which a run ended because a loss or gradient was not finite."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from spanwise.batch import Batch
from spanwise.run.folder import writing


def save_for_study(rows: Batch, folder: Path, step: int) -> Path:
    """Write a minibatch to the run folder, with the number of values that are not finite.

    Returns:
      The safetensors file with the batch's columns; a JSON file of the same name beside it
      holds the counts.
    """
    named = {f.name: getattr(rows, f.name) for f in fields(rows)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in named.items() if isinstance(v, Tensor)}
    counts = {k: int((~v.isfinite()).sum()) for k, v in tensors.items() if v.is_floating_point()}
    path = folder / "not_finite" / f"step_{step:05d}.safetensors"
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
        record = {"step": step, "rows": len(rows.tokens), "not_finite": counts}
        path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
