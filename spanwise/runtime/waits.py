"""What the process is waiting for, so that a watchdog can say so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Wait:
    """Something that takes time: a call that was made, or work that is being done."""

    what: object
    """Its ``str`` says what it is, such as ``the update, step 3``."""

    since: float = field(default_factory=time.monotonic)
    """When it began, on the clock of ``time.monotonic``."""


_open: dict[Wait, None] = {}


@contextlib.contextmanager
def waiting(what: object) -> Iterator[None]:
    """While the context is open, ``what`` is among the ``open_waits``.

    Example:
      >>> with waiting("the update, step 3"):
      ...     [str(wait.what) for wait in open_waits()]
      ['the update, step 3']
    """
    wait = Wait(what)
    _open[wait] = None
    try:
        yield
    finally:
        del _open[wait]


def open_waits() -> list[Wait]:
    """Everything that is being waited for, the oldest first. Any thread may ask."""
    return list(_open)
