"""``spanwise build-base``: a small model from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanwise.cli.options import parsed
from spanwise.cli.words import UsageError, split_name

BASE_MODELS = ("search_base", "chain_base")
"""The models that ship with spanwise: functions of ``spanwise.toys.base_model``."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Fit a small model from nothing, on demonstrations that spanwise makes up."""

    folder: Path
    """Folder of the model, in Hugging Face format."""

    fit: Any
    """Shape of the model, its demonstrations and the schedule of the fit."""


def build_base_command(arguments: list[str]) -> None:
    """Fit one of the models that ship."""
    there_are = f"there are {', '.join(BASE_MODELS)}"
    name, rest = split_name(arguments, "build-base MODEL", there_are)
    if name not in BASE_MODELS:
        raise UsageError(f"no base model {name!r}; {there_are}")

    from spanwise.toys import base_model

    default = BuildOptions(folder=Path(name), fit=getattr(base_model, name)())
    options = parsed(default, rest, f"spanwise build-base {name}")
    if options.folder.exists():
        raise UsageError(f"{options.folder} exists already; give another --folder")

    from spanwise.display import Display

    display = Display()
    with display.fitting(options.fit.num_steps) as progress:
        model, tokenizer = base_model.fit_base_model(options.fit, progress)
    base_model.save_base_model(model, tokenizer, options.folder)
    display.console.print(f"model folder  {options.folder}", highlight=False)
