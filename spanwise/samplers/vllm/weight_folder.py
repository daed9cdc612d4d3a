"""Weights for an engine in another process, handed over as safetensors files."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from spanwise.models.lora import merged_weights
from spanwise.samplers.base import EngineError

_MEMORY = Path("/dev/shm")


class WeightFolder:
    """Where the newest weights of a model lie; older ones are deleted.

    Engines get a plain model: an adapter is added into the weights that it belongs to.

    Args:
      model: A causal language model of transformers; its architecture stays.
      parent: A folder that the engines can read; by default one in memory where there is
        room for two copies, else one for temporary files.

    Raises:
      EngineError: by ``write`` too, if the folder cannot be written.
    """

    def __init__(self, model: Any, parent: Path | None) -> None:
        self._plain = _without_weights(model)
        parent = parent or _fast(model)
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="spanwise-weights-", dir=parent))
        except OSError as error:
            raise EngineError(f"no weights for the engine can be written: {error}") from error
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, True)
        self._number = 0
        self.newest = self._folder / "0"
        """In Hugging Face format."""

    def write(self, model: Any, tokenizer: Any = None) -> Path:
        """The folder with the model as it is now; ``discard_older`` once it has been read."""
        self._number += 1
        self.newest = self._folder / str(self._number)
        try:
            self._plain.save_pretrained(self.newest, state_dict=dict(merged_weights(model)))
            if tokenizer is not None:
                tokenizer.save_pretrained(self.newest)
        except (OSError, SafetensorError) as error:
            raise EngineError(
                f"the weights for the engine cannot be written to {self.newest}: {error}"
            ) from error
        return self.newest

    def discard_older(self) -> None:
        """Delete all but the newest."""
        for folder in self._folder.iterdir():
            if folder != self.newest:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Delete everything, as the end of the program does too."""
        self._remove()


def _without_weights(model: Any) -> Any:
    """A model of the same kind that knows the format of its files, and has no adapter."""
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config)).to(model.dtype)
    plain.generation_config = model.generation_config
    return plain


def _fast(model: Any) -> Path | None:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 3 * size
    return _MEMORY if in_memory else None
