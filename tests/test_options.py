"""The settings of the recipes that ship, pinned in options.txt: a new one is a decision."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from spanwise import recipes
from spanwise.cli.base_models import BASE_MODELS, BuildOptions
from spanwise.cli.options import configured, registry, trackers_and_metrics
from spanwise.cli.parts import KINDS, choose_parts, exchangeable
from spanwise.cli.reading import CompareOptions, ShowOptions, ViewOptions
from spanwise.cli.training import EvalOptions
from spanwise.lookup import load
from spanwise.study.command import CorrelationOptions
from spanwise.toys import base_model

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


HELPED = {
    **{name: configured(name, []) for name in recipes.names()},
    **{
        name: choose_parts(configured("sae_chain", []), ["--" + name])[0]
        for name in (
            *(f"sampler={engine}" for engine in KINDS["spanwise.samplers.base:Engine"]),
            *(f"advantage.spans={kind}" for kind in KINDS["spanwise.partitions:Partition"]),
            *(f"schedule={kind}" for kind in KINDS["spanwise.learn.schedule:Schedule"]),
        )
    },
    **{kind.__name__: kind() for kind in (EvalOptions, ShowOptions, ViewOptions, CompareOptions)},
    "CorrelationOptions": CorrelationOptions(),
    **{name: BuildOptions(folder=Path(), fit=getattr(base_model, name)()) for name in BASE_MODELS},
}


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("name", HELPED)
def test_every_option_says_what_it_is(name: str) -> None:
    """Its help is there, and does not begin in the middle of a sentence, as "Of the seed."."""
    settings: Any = HELPED[name]
    rules = registry(trackers_and_metrics)
    parser = tyro.extras.get_parser(type(settings), default=settings, registry=rules)
    helps = {action.option_strings[0]: str(action.help) for action in parser._actions}
    bare = {name: re.sub(r"\((default: .*|required)", "", text) for name, text in helps.items()}
    fit = re.compile(r"(?!Of |What |By )[A-Z0-9`]")
    assert len(bare) > 1 and not {n: t for n, t in bare.items() if n != "-h" and not fit.match(t)}
