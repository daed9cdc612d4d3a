"""Tools that an agent may call. Every call has a deadline that is enforced."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from spanwise.tree import Failure, FailureKind

T = TypeVar("T")

MAX_RUNNING = 128
"""Threads that make calls at once, in one event loop; other calls wait for one of them to end,
which does not count towards their deadlines."""

MAX_ABANDONED = 64
"""With so many threads past their deadlines no call is begun: each keeps its memory.

There are then never more than ``MAX_RUNNING + MAX_ABANDONED`` threads of tools.
"""

LOOK_S = 0.25
"""How often a call that waits for a thread looks whether too many hang."""

_left: set[threading.Thread] = set()


class Room:
    """A semaphore of ``size`` places for each event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._places: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def places(self) -> asyncio.Semaphore:
        """Of the event loop that runs."""
        for loop in [loop for loop in self._places if loop.is_closed()]:
            del self._places[loop]
        return self._places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._size))


_room = Room(MAX_RUNNING)


class ToolError(RuntimeError):
    """A tool could not answer. The message is one line for a person."""

    kind: ClassVar[FailureKind] = "tool_error"

    def failure(self) -> Failure:
        """For the record: the kind, and the message on one line.

        Example:
          >>> ToolTimeout("no answer in 2 s").failure().kind
          'tool_timeout'
        """
        return Failure(kind=self.kind, message=" ".join(str(self).split())[:500])


class ToolTimeout(ToolError):
    """A tool did not answer before its deadline."""

    kind = "tool_timeout"


class ToolCrash(ToolError):
    """The process of a tool died."""

    kind = "tool_crash"


class Tool(ABC):
    """One tool: text in, text out. ``continue`` runs in a thread of its own.

    Subclasses are frozen keyword-only dataclasses; ``deadline_s`` is an option.
    """

    deadline_s: float

    @abstractmethod
    def call(self, query: str) -> Any:
        """Answer a query.

        Raises:
          ToolError: if it cannot.
        """

    async def __call__(self, query: str) -> Any:
        """Answer a query before the deadline.

        Raises:
          ToolTimeout: at the deadline; the thread is left behind.
          ToolError: if the tool raised anything.
        """
        try:
            return await run_with_deadline(lambda: self.call(query), self.deadline_s)
        except TimeoutError:
            raise ToolTimeout(
                f"{type(self).__name__} gave no answer in {self.deadline_s:g} s"
            ) from None
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(f"{type(self).__name__} raised {error!r}") from error


async def run_with_deadline(function: Callable[[], T], deadline_s: float) -> T:
    """Run a blocking function in a thread of its own, for a limited time.

    Raises:
      TimeoutError: at the deadline, although the thread may still run.
      ToolError: at once, if ``MAX_ABANDONED`` earlier calls still run after theirs.
    """
    places, loop = _room.places(), asyncio.get_running_loop()
    _check_left_behind()
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(places.acquire(), LOOK_S)
            break
        _check_left_behind()

    def call() -> T:
        try:
            return function()
        finally:  # the place of a thread that is left behind stays taken
            with contextlib.suppress(RuntimeError):  # the loop has closed, its places with it
                loop.call_soon_threadsafe(places.release)

    return await in_thread(call, deadline_s)


def _check_left_behind() -> None:
    if (hanging := abandoned_threads()) >= MAX_ABANDONED:
        raise ToolError(
            f"{hanging} calls hang although their deadlines are over; no other is begun before "
            f"fewer than {MAX_ABANDONED} do"
        )


async def in_thread(function: Callable[[], T], deadline_s: float | None = None) -> T:
    """Run a blocking function in a daemon thread of its own, in the context of the caller.

    A thread of its own, not one of a pool: calls that hang can then neither fill a
    pool nor keep the process from ending.

    Raises:
      TimeoutError: at the deadline, if there is one, although the thread may still run.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            # A thread has no say over the run: SystemExit and its like are the tool's error,
            # and a future cannot carry StopIteration.
            plain = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
            error = raised if plain else RuntimeError(repr(raised))
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    try:
        return await asyncio.wait_for(done, deadline_s)
    except (TimeoutError, asyncio.CancelledError):
        _left.add(thread)
        raise


def abandoned_threads() -> int:
    """Threads that still run a call which nobody waits for any more."""
    _left.difference_update([thread for thread in _left if not thread.is_alive()])
    return len(_left)
