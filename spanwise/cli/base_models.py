"""``spanwise build-base``: a small model from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanwise import lookup
from spanwise.cli.options import parsed
from spanwise.cli.words import UsageError, split_name

BASE_MODELS = {name: f"spanwise.toys.base_model:{name}" for name in ("chain_base", "search_base")}
"""The models that ship with spanwise."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Fit a small model from nothing, on demonstrations that are made up."""

    folder: Path
    """Folder of the model, in Hugging Face format."""

    fit: Any
    """Shape of the model, its demonstrations and the schedule of the fit."""


def build_base_command(arguments: list[str]) -> None:
    """Fit one of the models that ship, or one of the user's own."""
    there_are = f"the models are {', '.join(BASE_MODELS)}, or FILE.py:FUNCTION"
    name, rest = split_name(arguments, "build-base MODEL", there_are)
    made: object = lookup.load(name, BASE_MODELS, "base model")()

    from spanwise.toys import base_model

    if not isinstance(made, base_model.BaseModelRecipe):
        raise UsageError(f"{name} returns {type(made).__name__}, not a BaseModelRecipe")
    default = BuildOptions(folder=Path(name.rpartition(":")[2]), fit=made)
    options = parsed(default, rest, f"spanwise build-base {name}")
    if options.folder.exists():
        raise UsageError(f"{options.folder} exists already; give another --folder")

    from spanwise.display import Display

    display = Display()
    with display.bar("fitting", options.fit.num_steps) as after_step:
        model, tokenizer = base_model.fit_base_model(
            options.fit, lambda fit: after_step(fit.step, f"loss {fit.loss:.3f}")
        )
    base_model.save_base_model(model, tokenizer, options.folder)
    display.console.print(f"model folder  {options.folder}")
