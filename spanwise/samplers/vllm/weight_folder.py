"""Weights for an engine in another process, handed over as safetensors files."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from spanwise.models.lora import merged_weights
from spanwise.models.sharding import gather
from spanwise.samplers.base import EngineError

_MEMORY = Path("/dev/shm")


class WeightFolder:
    """Where the newest weights of a model lie; older ones are deleted.

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

    def write(self, weights: Mapping[str, Tensor], tokenizer: Any = None) -> Path:
        """The folder with these weights; ``discard_older`` once it has been read."""
        self._number += 1
        self.newest = self._folder / str(self._number)
        try:
            self._plain.save_pretrained(self.newest, state_dict=dict(weights))
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


def plain_weights(model: Any, *, keep: bool = True) -> dict[str, Tensor]:
    """The whole weights for an engine, an adapter added into those that it belongs to.

    Args:
      model: A causal language model of transformers. If it is split over training processes,
        all of them have to ask.
      keep: Whether this process wants them; without it, the result is empty.
    """
    return gather(dict(merged_weights(model)), keep=keep)


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
