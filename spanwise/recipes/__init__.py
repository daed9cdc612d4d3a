"""Recipes: functions without arguments that return a complete ``TrainConfig``.

A recipe's name is its function's. Your own lives in your own file and is named
``path/to/file.py:function`` or, where it is installed, ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from spanwise import lookup
from spanwise.errors import SpanwiseError

if TYPE_CHECKING:
    from spanwise.train.config import TrainConfig

SHIPPED = {
    name: f"spanwise.recipes.{module}:{name}"
    for module, found in {
        "chain": [
            *("adaptive_gae_chain", "dapo_chain", "dr_grpo_chain", "gae_chain", "grpo_chain"),
            *("gspo_chain", "reinforce_chain", "rloo_chain", "sae_chain", "sae_end_chain"),
            *("sae_ratio_chain", "vapo_chain"),
            *("cispo_chain", "gpg_chain", "lite_ppo_chain", "luspo_chain", "opo_chain"),
            *("reinforce_plain_chain", "sapo_chain"),
        ],
        "math": ["sae_gym", "sae_math"],
        "search": [
            *("at2po_search", "at2po_search_paper", "dapo_search", "dr_grpo_search"),
            *("grpo_search", "gspo_search", "random_tree_search", "rloo_search"),
            "turn_gae_search",
        ],
    }.items()
    for name in found
}
"""The recipes that ship with spanwise. Their modules are imported when one is asked for."""


def names() -> list[str]:
    """The recipes that ship with spanwise."""
    return sorted(SHIPPED)


def find(spec: str) -> Callable[[], TrainConfig]:
    """The recipe of that name, ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``.

    Raises:
      SpanwiseError: if there is none; the message names what is near.
    """
    recipe: Any = lookup.load(spec, SHIPPED, "recipe")
    if not callable(recipe):
        raise SpanwiseError(f"{spec} is {type(recipe).__name__}; a recipe is a function")
    return cast("Callable[[], TrainConfig]", recipe)
