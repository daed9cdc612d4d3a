"""What a run is waiting for: calls, each with the node that needs it, and work of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call to the engine or to the environment, and what it is for."""

    kind: Literal["engine", "environment"]
    step: int
    task_id: str
    path: tuple[int, ...]
    """The node."""

    attempt: int = 0
    """0 for the first."""

    since: float = field(default_factory=time.monotonic, compare=False)
    """When it began, on ``time.monotonic``'s clock."""

    def __str__(self) -> str:
        node = ".".join(map(str, self.path))
        again = f", attempt {self.attempt + 1}" if self.attempt else ""
        return f"the {self.kind}, step {self.step}, task {self.task_id}, node {node}{again}"


@dataclass(frozen=True, kw_only=True)
class Work:
    """A part of a step in which the run computes or writes."""

    name: str
    """Such as ``update``."""

    step: int
    since: float = field(default_factory=time.monotonic, compare=False)
    """When it began, on ``time.monotonic``'s clock."""

    def __str__(self) -> str:
        return f"the {self.name}, step {self.step}"


_current: ContextVar[Call | None] = ContextVar("current call", default=None)
_open: dict[int, Call | Work] = {}


@contextlib.contextmanager
def waiting(wait: Call | Work) -> Iterator[None]:
    """While the context is open, the call or work is among ``open_waits``."""
    token = _current.set(wait if isinstance(wait, Call) else None)
    _open[id(wait)] = wait
    try:
        yield
    finally:
        del _open[id(wait)]
        _current.reset(token)


def current_call() -> Call | None:
    """The call on whose behalf this code runs; None outside a rollout."""
    return _current.get()


def open_waits() -> list[Call | Work]:
    """All calls and work under way, the oldest first. Any thread may ask."""
    return sorted(list(_open.values()), key=lambda wait: wait.since)
