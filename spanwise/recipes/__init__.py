"""Recipes: functions without arguments that return a complete ``TrainConfig``.

A recipe's name is its function's. Your own lives in your own file and is named
``path/to/file.py:function``. Modules with recipes are imported when one is asked for,
so that a misspelt name is refused at once.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spanwise.errors import SpanwiseError

if TYPE_CHECKING:
    from spanwise.train.config import TrainConfig

_MODULES = {
    "at2po_search": "search",
    "at2po_search_paper": "search",
    "dapo_chain": "chain",
    "drgrpo_chain": "chain",
    "gae_chain": "chain",
    "grpo_chain": "chain",
    "grpo_search": "search",
    "gspo_chain": "chain",
    "reinforce_chain": "chain",
    "rloo_chain": "chain",
    "sae_chain": "chain",
    "sae_gym": "math",
    "sae_math": "math",
    "sae_ratio_chain": "chain",
    "turn_gae_search": "search",
    "vapo_chain": "chain",
}


class UnknownRecipe(SpanwiseError):
    """There is no such recipe."""


def names() -> list[str]:
    """The recipes that ship with spanwise."""
    return sorted(_MODULES)


def find(spec: str) -> Callable[[], TrainConfig]:
    """The recipe of that name, or ``FILE.py:FUNCTION``.

    Raises:
      UnknownRecipe: if there is none; the message names what is near.
    """
    if ".py:" in spec:
        return _from_file(spec)
    if spec.endswith(".py"):
        raise UnknownRecipe(f"name a function of {spec} as well: {spec}:FUNCTION")
    if spec not in _MODULES:
        near = difflib.get_close_matches(spec, _MODULES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UnknownRecipe(
            f"no recipe {spec!r}; {meant}there are {', '.join(names())}, or FILE.py:FUNCTION"
        )
    module = importlib.import_module(f"spanwise.recipes.{_MODULES[spec]}")
    return getattr(module, spec)


def _from_file(spec: str) -> Callable[[], TrainConfig]:
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UnknownRecipe(f"no recipe file {file}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module  # where a class's module is looked up
    module_spec.loader.exec_module(module)
    recipe: Any = getattr(module, function, None)
    if not callable(recipe):
        raise UnknownRecipe(f"{file} has no function {function}")
    return cast("Callable[[], TrainConfig]", recipe)
