"""The options of a command: every field of a settings object is one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from spanwise import lookup, recipes
from spanwise.cli.parts import choose_parts, parts_help
from spanwise.cli.words import UsageError

if TYPE_CHECKING:
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructTypeInfo,
    )

    from spanwise.train.config import TrainConfig

    PrimitiveRule = Callable[[PrimitiveTypeInfo], PrimitiveConstructorSpec | None]

C = TypeVar("C")


def configured(spec: str, arguments: Sequence[str]) -> TrainConfig:
    """A recipe's configuration with the options of the command line."""
    if odd := [word for word in arguments if word.startswith("--tyro")]:
        raise UsageError(f"{odd[0]} is no setting of a run")  # it would write a file of its own
    made: object = recipes.find(spec)()

    from spanwise.train.config import TrainConfig

    if not isinstance(made, TrainConfig):
        raise UsageError(f"{spec} returns {type(made).__name__}, a recipe returns a TrainConfig")
    return parsed(made, arguments, f"spanwise train {spec}", trackers_and_metrics)


def parsed(default: C, arguments: Sequence[str], prog: str, *rules: PrimitiveRule) -> C:
    """The settings with the parts and the values that the arguments give them.
    What the constructor of a part raises passes as it is.
    """
    import tyro

    draft, rest = choose_parts(default, arguments)
    kind: Any = type(draft)
    about = "\n\n".join(filter(None, [kind.__doc__, parts_help(draft)]))
    try:
        return tyro.cli(
            kind, default=draft, args=rest, prog=prog, description=about, registry=registry(*rules)
        )
    except _Raised as raised:
        (error,) = raised.args
        raise error from error.__cause__


class _Raised(Exception):
    """Takes what a constructor raised past tyro, which makes a complaint of a ValueError."""


def _constructor(kind: Callable[..., C]) -> Callable[..., C]:
    @functools.wraps(kind, updated=())
    def construct(*values: Any, **fields: Any) -> C:
        try:
            return kind(*values, **fields)
        except Exception as error:
            raise _Raised(error) from None

    return construct


def registry(*rules: PrimitiveRule) -> ConstructorRegistry:
    """The rules of tyro and others, with constructors whose exceptions pass through it."""
    from tyro.constructors import ConstructorRegistry

    made, asked = ConstructorRegistry(), []

    @made.struct_rule
    def settings(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or info.type in asked:
            return None
        asked.append(info.type)  # the rules that are asked below include this one
        usual: Any = ConstructorRegistry.get_struct_spec(info)
        asked.remove(info.type)
        fields = [
            dataclasses.replace(f, helptext=functools.partial(_paragraphs, f.helptext))
            for f in usual.fields
        ]
        return dataclasses.replace(
            usual, instantiate=_constructor(usual.instantiate), fields=tuple(fields)
        )

    for rule in rules:
        made.primitive_rule(rule)
    return made


def trackers_and_metrics(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """The rule for an option whose value is the name of a tracker or metric."""
    from tyro.constructors import PrimitiveConstructorSpec

    from spanwise.run.trackers import TRACKERS, Tracker
    from spanwise.train.metrics import Metric

    if info.type not in (type[Tracker], Metric):
        return None
    names, what = (TRACKERS, "tracker") if info.type == type[Tracker] else ({}, "metric")

    def find(words: list[str]) -> Any:
        named = lookup.load(words[0], names, what)
        if not (issubclass(named, Tracker) if isinstance(named, type) else what == "metric"):
            raise UsageError(f"{words[0]} is no {what}")
        return named

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="|".join([*names, "FILE.py:NAME"]),
        instance_from_str=_constructor(find),
        is_instance=callable,
        str_from_instance=lambda named: [named.__name__],
    )


def _paragraphs(helptext: str | Callable[[], str | None] | None) -> str | None:
    """A help text without the line breaks of its source."""
    text = helptext() if callable(helptext) else helptext
    return None if text is None else "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))
