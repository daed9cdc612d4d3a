"""Models and tokenizers from a folder, a hub name or what ships with spanwise.

What can be refused without the weights is refused before they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

SHIPPED = Path(__file__).parent.parent / "assets"
"""Small models that come with the package, by name."""


class ModelError(ValueError):
    """A model or tokenizer cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which causal language model to train, and how to hold it."""

    path: str = "search_base"
    """A folder, a Hugging Face name such as ``Qwen/Qwen3-4B``, or a shipped model's name."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` is a GPU if there is one."""

    def resolve(self) -> str:
        """The folder or hub name that is loaded.

        Raises:
          ModelError: if ``path`` is none of the three.
        """
        if (SHIPPED / self.path / "config.json").is_file():
            return str(SHIPPED / self.path)
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ModelError(f"model folder {self.path} has no config.json")
            return str(folder)
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        if looks_local:
            shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))
            raise ModelError(
                f"there is no model folder {self.path}; give a folder, a Hugging Face name "
                f"(owner/name) or a shipped model ({shipped})"
            )
        return self.path

    def load_tokenizer(self) -> Any:
        """The tokenizer, checked for a chat template.

        Raises:
          ModelError: if it cannot be found, or has no chat template.
        """
        source = self.resolve()
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer at {self.path}: {_first_line(error)}") from error
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {self.path} has no chat template; choose an instruction-tuned "
                "model, or add chat_template.jinja to its folder"
            )
        return tokenizer

    def load(self) -> torch.nn.Module:
        """The model with its weights, in evaluation mode (no dropout), on its device.

        Raises:
          ModelError: if the weights cannot be found or read.
        """
        source = self.resolve()
        transformers_logging.disable_progress_bar()  # spanwise shows its own progress
        try:
            config = AutoConfig.from_pretrained(source)
            model: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=getattr(torch, self.dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load {self.path}: {_first_line(error)}") from error
        return model.to(self.resolved_device()).eval()

    def resolved_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
