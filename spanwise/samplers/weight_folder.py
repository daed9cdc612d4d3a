"""Weights for an engine in another process, handed over as safetensors files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

_MEMORY = Path("/dev/shm")


class WeightFolder:
    """Where the newest weights of a model lie; older ones are deleted.

    Args:
      model: Says how much room its weights need.
      parent: A folder that the engines can read; by default one in memory where there is
        room for two copies, else one for temporary files.
    """

    def __init__(self, model: Any, parent: Path | None) -> None:
        self._folder = Path(
            tempfile.mkdtemp(prefix="spanwise-weights-", dir=parent or _fast(model))
        )
        self._number = 0
        self.newest = self._folder / "0"
        """In Hugging Face format."""

    def write(self, model: Any, tokenizer: Any = None) -> Path:
        """The folder with the model as it is now; ``discard_older`` once it has been read."""
        self._number += 1
        self.newest = self._folder / str(self._number)
        model.save_pretrained(self.newest)
        if tokenizer is not None:
            tokenizer.save_pretrained(self.newest)
        return self.newest

    def discard_older(self) -> None:
        """Delete all but the newest."""
        for folder in self._folder.iterdir():
            if folder != self.newest:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _fast(model: Any) -> Path | None:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 3 * size
    return _MEMORY if in_memory else None
