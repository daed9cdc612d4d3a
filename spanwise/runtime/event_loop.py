"""Runs a coroutine to its end, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PARTING_S = 1.0
"""Seconds that abandoned tasks have to end once they are cancelled."""


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, computed in an event loop of its own.

    ``asyncio.run``, and ``anyio.run`` with it, waits for every task to end, so one that ignores
    its cancellation would be waited for for ever; and it turns Ctrl-C into a cancellation,
    which code that blocks the loop never sees. Here neither holds.

    Raises:
      Exception: whatever the coroutine raised; the first exception of a group.
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
