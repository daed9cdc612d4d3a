"""Running rollouts to their end, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PARTING_S = 1.0
"""What calls that were left behind are given to end, in seconds."""


def run_rollouts(coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns, in an event loop of its own.

    ``asyncio.run`` waits for every task to end, so one call that ignores its cancellation
    would keep a step from ending for ever; and it turns Ctrl-C into a cancellation, which
    code that blocks the loop never sees. Here neither holds.

    Raises:
      Exception: what the coroutine raised; of a group of exceptions the first.
    """
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    except ExceptionGroup as group:
        first = _first(group)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=PARTING_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    raise first  # outside of the group's handler: what it was raised from stays its cause


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
