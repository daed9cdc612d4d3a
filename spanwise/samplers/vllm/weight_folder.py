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
    """A folder with the newest weights of a model; older ones are deleted.

    Without a ``parent``, which the engines must be able to read, it is in memory if that has room
    for two copies, else among temporary files.

    Raises:
      EngineError: if the folder cannot be written; ``write`` may raise it too.
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
        """Folder of the newest weights, in Hugging Face format."""

    def write(self, weights: Mapping[str, Tensor], tokenizer: Any = None) -> Path:
        """Write these weights, whole and without an adapter, to a new folder.

        Returns:
          The folder; call ``discard_older`` once it has been read.
        """
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
        """Delete all weights but the newest."""
        for folder in self._folder.iterdir():
            if folder != self.newest:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Delete all weights; the end of the program does so, too."""
        self._remove()


def plain_weights(model: Any, *, keep: bool = True) -> dict[str, Tensor]:
    """The whole weights of a model for an engine, with an adapter merged into them.

    All processes over which the model is split have to call this; without ``keep`` the result is
    empty.
    """
    return gather(dict(merged_weights(model)), keep=keep)


def _without_weights(model: Any) -> Any:
    """A model of the same class without weights and adapter, which can write such a model."""
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config)).to(model.dtype)
    plain.generation_config = model.generation_config
    return plain


def _fast(model: Any) -> Path | None:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 3 * size
    return _MEMORY if in_memory else None
