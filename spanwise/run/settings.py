"""The settings of a run as ``config.json`` records them, under dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings under dotted names.

    Example:
      >>> flat_settings({"seed": 0, "update": {"epochs": 1}})
      {'seed': 0, 'update.epochs': 1}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The names of flat settings that are not the same, or in one alone.

    Example:
      >>> differing({"seed": 0, "steps": 3}, {"seed": 1, "steps": 3})
      ['seed']
    """
    return [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
