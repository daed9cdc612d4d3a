"""The settings of the recipes that ship, pinned in options.txt: a new one is a decision."""

from __future__ import annotations

import dataclasses
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spanwise import recipes
from spanwise.cli.parts import KINDS, exchangeable
from spanwise.lookup import load

PINNED = Path(__file__).with_name("options.txt")


def leaves(config: Any, above: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        if dataclasses.is_dataclass(value) and not inspect.isclass(value):
            yield from leaves(value, f"{above}{field.name}.")
        else:
            yield above + field.name


def listed() -> list[str]:
    """A line for each option and part, with its recipes if not all have it; then the kinds."""
    found = defaultdict[str, list[str]](list)
    for name in recipes.names():
        config = recipes.find(name)()
        parts = [f"{'.'.join(path)}: {base.__name__}" for path, base in exchangeable(config)]
        for option in [*leaves(config), *parts]:
            found[option].append(name)
    lines = sorted(
        option if len(having) == len(recipes.names()) else f"{option} ({' '.join(having)})"
        for option, having in found.items()
    )
    for base, kinds in KINDS.items():
        for name in kinds:
            options = " ".join(leaves(load(name, kinds, "kind")))
            lines.append(f"{base.partition(':')[2]} {name}: {options}".rstrip(": "))
    return lines


def test_the_recipes_have_these_options_and_no_others() -> None:
    assert listed() == PINNED.read_text(encoding="utf-8").splitlines()
