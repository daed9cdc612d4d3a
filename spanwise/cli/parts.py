"""Parts of a configuration that are chosen by name.

``--sampler vllm`` takes the place of the recipe's engine, and ``--objective.ratio-spans
my.py:Mine`` that of its spans: any part of the settings can be exchanged for a class of the
same base, whose fields are then options. The names of the classes that ship are listed here.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from spanwise import lookup
from spanwise.cli.words import UsageError

C = TypeVar("C")

KINDS: Mapping[str, Mapping[str, str]] = {
    "spanwise.samplers.base:Engine": {
        "transformers": "spanwise.samplers.embedded.engine:TransformersEngine",
        "vllm": "spanwise.samplers.vllm.local:VLLMEngine",
        "servers": "spanwise.samplers.vllm.servers:VLLMServers",
    },
    "spanwise.partitions:Partition": {
        "token": "spanwise.partitions:Token",
        "turn": "spanwise.partitions:Turn",
        "trajectory": "spanwise.partitions:Trajectory",
        "low_probability": "spanwise.partitions:LowProbability",
        "mean_length": "spanwise.partitions:MeanLength",
        "high_entropy": "spanwise.partitions:HighEntropy",
        "fixed_length": "spanwise.partitions:FixedLength",
        "delimiter": "spanwise.partitions:Delimiter",
    },
    "spanwise.credit:Advantage": {
        "group": "spanwise.credit:GroupAdvantage",
        "span": "spanwise.credit:SpanAdvantage",
        "tree": "spanwise.credit:TreeAdvantage",
    },
    "spanwise.learn.critic:Critic": {
        "none": "spanwise.learn.critic:NoCritic",
        "value_head": "spanwise.learn.critic:ValueHead",
    },
    "spanwise.learn.schedule:Schedule": {
        "constant": "spanwise.learn.schedule:Constant",
        "linear": "spanwise.learn.schedule:Linear",
        "cosine": "spanwise.learn.schedule:Cosine",
    },
    "spanwise.rollout.base:Rollout": {
        "chains": "spanwise.rollout.chains:Chains",
        "tree_search": "spanwise.rollout.tree_search:TreeSearch",
    },
}
"""By base class, the names of its kinds."""


def choose_parts(config: C, arguments: Sequence[str]) -> tuple[C, list[str]]:
    """The settings with the parts that the arguments name, and the other arguments.

    The result is a draft: it holds the defaults of the parts and what has none is missing, and
    nothing is checked before it is made anew with the values of all options.

    Raises:
      UsageError: if a part is given twice, without a name, or is no class of its base.
      UnknownName: if there is no such part; the message says what is near.
    """
    options = sorted(_options(arguments), key=lambda option: len(option.path))  # outer parts first
    taken: dict[tuple[str, ...], _Option] = {}
    for option in options:
        base = _base_of(config, option.path)
        if base is None:
            continue
        if option.path in taken:
            raise UsageError(f"{option.flag} is given twice")
        taken[option.path] = option
        config = _exchanged(config, option.path, _draft(option, base, _part(config, option.path)))
    used = {at for option in taken.values() for at in option.words}
    return config, [word for at, word in enumerate(arguments) if at not in used]


def parts_help(config: object) -> str:
    """A paragraph on the parts that can be chosen, for the help of a command."""
    lines = []
    for path, base in exchangeable(config):
        names = ", ".join(_kinds(base)) or "a class of your own"
        lines.append(f"{_flag(path)} ({type(_part(config, path)).__name__}): {names}")
    if not lines:
        return ""
    about = (
        "Parts that another can take the place of, by its name or as a class of your own, "
        "FILE.py:CLASS; it then has options of its own, shown by --help behind it:"
    )
    return "\n".join([about, *lines])


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


@dataclasses.dataclass(frozen=True)
class _Option:
    """An option among the words of a command line."""

    path: tuple[str, ...]
    value: str
    words: range

    @property
    def flag(self) -> str:
        return _flag(self.path)


def _flag(path: tuple[str, ...]) -> str:
    return f"--{'.'.join(path).replace('_', '-')}"


def _options(arguments: Sequence[str]) -> Iterator[_Option]:
    for at, word in enumerate(arguments):
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            if not equals and (following := [*arguments, "--"][at + 1])[:2] != "--":
                value = following
            length = 2 if value and not equals else 1
            path = tuple(flag.replace("-", "_").split("."))
            yield _Option(path, value, range(at, at + length))


def _part(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


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


def _draft(option: _Option, base: type, current: object) -> object:
    """The part that an option names: the recipe's own if it is of that kind, else a new one."""
    kinds = _kinds(base)
    if not option.value:
        raise UsageError(f"{option.flag} needs a name: {', '.join([*kinds, 'FILE.py:CLASS'])}")
    kind = lookup.load(option.value, kinds, option.flag)
    if type(current) is kind:
        return current
    if not isinstance(kind, type) or not issubclass(kind, base) or inspect.isabstract(kind):
        raise UsageError(f"{option.flag} {option.value}: that is no class of {base.__name__}s")
    return _unchecked(kind)


def _unchecked(kind: type) -> object:
    """An object with the defaults of its class, of which ``__post_init__`` has not heard."""
    import tyro

    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = tyro.MISSING
        object.__setattr__(made, field.name, value)
    return made


def _exchanged(config: C, path: Sequence[str], part: object) -> C:
    """The settings with another part at ``path``, not checked."""
    name, *below = path
    made = copy.copy(config)
    if below:
        part = _exchanged(getattr(config, name), below, part)
    object.__setattr__(made, name, part)
    return made
