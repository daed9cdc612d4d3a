"""Parts of a configuration that are chosen by name.

``--sampler vllm`` takes the place of the recipe's engine, and ``--objective.ratio-spans
my.py:Mine`` that of its spans: any part of the settings can be exchanged for a class of the
same base, whose fields are then options. The names of the classes that ship are listed here.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from spanwise import lookup
from spanwise.cli.words import UsageError
from spanwise.envs.base import Environment

C = TypeVar("C")


def _named(module: str, classes: str) -> dict[str, str]:
    """Classes of a module by their names in snake case."""
    snake = re.compile(r"(?<=[a-z])(?=[A-Z])")
    return {snake.sub("_", name).lower(): f"{module}:{name}" for name in classes.split()}


KINDS: Mapping[str, Mapping[str, str]] = {
    "spanwise.samplers.base:Engine": {
        "transformers": "spanwise.samplers.embedded.engine:TransformersEngine",
        "vllm": "spanwise.samplers.vllm.local:VLLMEngine",
        "servers": "spanwise.samplers.vllm.servers:VLLMServers",
    },
    "spanwise.partitions:Partition": _named(
        "spanwise.partitions",
        "Token Turn Trajectory LowProbability MeanLength HighEntropy FixedLength Delimiter",
    ),
    "spanwise.credit:Advantage": {
        "group": "spanwise.credit:GroupAdvantage",
        "span": "spanwise.credit:SpanAdvantage",
        "tree": "spanwise.credit:TreeAdvantage",
    },
    "spanwise.learn.critic:Critic": {
        "none": "spanwise.learn.critic:NoCritic",
        "value_head": "spanwise.learn.critic:ValueHead",
    },
    "spanwise.learn.schedule:Schedule": _named("spanwise.learn.schedule", "Constant Linear Cosine"),
    "spanwise.rollout.base:Rollout": {
        "chains": "spanwise.rollout.chains:Chains",
        "tree_search": "spanwise.rollout.tree_search:TreeSearch",
    },
}
"""The names of the kinds of each base class."""


def choose_parts(config: C, arguments: Sequence[str]) -> tuple[C, list[str]]:
    """The settings with the parts that the arguments name, and the other arguments.

    The result is a draft: it holds the defaults of the parts and what has none is missing, and
    nothing is checked before it is made anew with the values of all options.

    Raises:
      UsageError: if a part is given twice, without a name, or is no class of its base.
      UnknownName: if there is no such part; the message says what is near.
    """
    options: list[tuple[list[str], int]] = []
    for at, word in enumerate(arguments):
        if word.startswith("--"):
            path = word[2:].partition("=")[0].replace("-", "_").split(".")
            options.append((path, at))
    chosen: list[list[str]] = []
    used: set[int] = set()
    for path, at in sorted(options, key=lambda option: len(option[0])):  # outer parts first
        base = _base_of(config, path)
        if base is None:
            continue
        flag, equals, name = arguments[at].partition("=")
        flag = flag.replace("_", "-")
        if path in chosen:
            raise UsageError(f"{flag} is given twice")
        chosen.append(path)
        used.add(at)
        if not equals and not (following := [*arguments, "--"][at + 1]).startswith("--"):
            name = following
            used.add(at + 1)
        part = _draft(flag, name, base, attrgetter(".".join(path))(config))
        config = _exchanged(config, path, part)
    return config, [word for at, word in enumerate(arguments) if at not in used]


def parts_help(config: object) -> str:
    """A paragraph on the parts that can be chosen, for the help of a command."""
    lines = [
        "Parts that can be exchanged for another, by its name or for a class of your own, "
        "FILE.py:CLASS; its options are then shown by --help behind it:"
    ]
    for path, base in exchangeable(config):
        names, dotted = ", ".join(_kinds(base)) or "a class of your own", ".".join(path)
        kind = type(attrgetter(dotted)(config)).__name__
        lines.append(f"--{dotted.replace('_', '-')} ({kind}): {names}")
    return "\n".join(lines) if len(lines) > 1 else ""


def exchangeable(
    config: Any, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type]]:
    """Paths and bases of the parts that are one of several kinds."""
    for field in dataclasses.fields(config):
        path, part = (*above, field.name), getattr(config, field.name)
        base = _base_of(config, [field.name])
        if base is not None:
            if inspect.isabstract(base):
                yield path, base
            yield from exchangeable(part, path)


def _base_of(config: Any, path: Sequence[str]) -> type | None:
    """The declared class of the part at ``path``; None if no part is there."""
    base: Any = None
    for name in path:
        if not dataclasses.is_dataclass(config) or not hasattr(config, name):
            return None
        base, config = typing.get_type_hints(type(config)).get(name), getattr(config, name)
    return base if isinstance(base, type) and dataclasses.is_dataclass(config) else None


def _kinds(base: type) -> Mapping[str, str]:
    return KINDS.get(f"{base.__module__}:{base.__name__}", {})


def _draft(flag: str, name: str, base: type, current: object) -> object:
    """The part of that name: the recipe's own if it is of that kind, else a new one."""
    kinds = _kinds(base)
    if not name:
        raise UsageError(f"{flag} needs a name: {', '.join([*kinds, 'FILE.py:CLASS'])}")
    kind = lookup.load(name, kinds, flag)
    if isinstance(kind, type) and base is Environment and not issubclass(kind, Environment):
        from spanwise.envs.agents import environment_of

        kind = environment_of(kind)
    if type(current) is kind:
        return current
    if not isinstance(kind, type) or not issubclass(kind, base) or inspect.isabstract(kind):
        raise UsageError(f"{flag} {name}: that is no class of {base.__name__}s")
    return _unchecked(kind)


def _unchecked(kind: type) -> object:
    """An object with the defaults of its class, of which ``__post_init__`` has not heard."""
    import tyro

    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        missing = value is dataclasses.MISSING
        object.__setattr__(made, field.name, tyro.MISSING if missing else value)
    return made


def _exchanged(config: C, path: Sequence[str], part: object) -> C:
    """The settings with another part at ``path``, not checked."""
    name, *below = path
    made = copy.copy(config)
    if below:
        part = _exchanged(getattr(config, name), below, part)
    object.__setattr__(made, name, part)
    return made
