"""Tools that an agent may call. Every call has a deadline that is enforced."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from spanwise.errors import one_line, place
from spanwise.tree import Failure, FailureKind

T = TypeVar("T")

MAX_RUNNING = 128
"""Tool calls that one event loop makes at once; the others wait, which does not count towards
their deadlines."""

MAX_ABANDONED = 64
"""While this many threads hang past their deadlines, no call is begun: each keeps its memory."""

POLL_S = 0.25
"""Seconds between two looks of a waiting call at how many threads hang."""


class ToolError(RuntimeError):
    """A tool could not answer. The message is one line for a person."""

    kind: ClassVar[FailureKind] = "tool_error"

    def failure(self) -> Failure:
        """The record of this error in a tree: its kind, and its message and cause on one line.

        Example:
          >>> ToolTimeout("no answer in 2 s").failure().kind
          'tool_timeout'
        """
        where = self.__cause__ and place(self.__cause__)
        return Failure(
            kind=self.kind, message=one_line(str(self)) + (f" ({where})" if where else "")
        )


class ToolTimeout(ToolError):
    """A tool did not answer before its deadline."""

    kind = "tool_timeout"


class ToolCrash(ToolError):
    """What answers for the tool, such as a process or a sandbox, died."""

    kind = "tool_crash"


class Tool(ABC):
    """A tool takes text and answers in a thread of its own, before a deadline.

    Subclasses are frozen keyword-only dataclasses with ``deadline_s``, in seconds, as a field.
    """

    deadline_s: float

    @abstractmethod
    def call(self, query: str) -> Any:
        """Answer a query; may block.

        Raises:
          ToolError: if it cannot.
        """

    async def __call__(self, query: str) -> Any:
        """Answer a query before the deadline.

        Raises:
          ToolTimeout: at the deadline; the thread is abandoned.
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
    """Run a blocking function in a thread for a limited time, in the context of the caller.

    The thread is a daemon of its own, not one of a pool such as asyncio's or anyio's: calls
    that hang neither fill a pool nor keep the process from ending. One that hangs keeps its
    place among ``MAX_RUNNING``, so the number of threads is bounded.

    Raises:
      TimeoutError: at the deadline, although the thread may still run.
      ToolError: if ``MAX_ABANDONED`` earlier calls still run after theirs.
    """
    places, loop, done = _places(), asyncio.get_running_loop(), Future[T]()
    _refuse_if_many_hang()
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(places.acquire(), POLL_S)
            break
        _refuse_if_many_hang()

    def work() -> None:
        done.set_running_or_notify_cancel()
        try:
            done.set_result(function())
        except BaseException as error:
            # A tool that calls sys.exit has failed; a future cannot carry StopIteration.
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            done.set_exception(error if plain else RuntimeError(repr(error)))
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has closed, its places with it
                loop.call_soon_threadsafe(places.release)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(done), deadline_s)
    except (TimeoutError, asyncio.CancelledError):
        if thread.is_alive():
            _abandoned.add(thread)
        raise


_abandoned: set[threading.Thread] = set()
_places_of: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


def abandoned_threads() -> int:
    """Number of threads that still run a call which nobody waits for any more."""
    _abandoned.difference_update([thread for thread in _abandoned if not thread.is_alive()])
    return len(_abandoned)


def _refuse_if_many_hang() -> None:
    if (hanging := abandoned_threads()) >= MAX_ABANDONED:
        raise ToolError(
            f"{hanging} calls hang although their deadlines are over; no other is begun before "
            f"fewer than {MAX_ABANDONED} do"
        )


def _places() -> asyncio.Semaphore:
    """The ``MAX_RUNNING`` places of the running event loop."""
    for loop in [loop for loop in _places_of if loop.is_closed()]:
        del _places_of[loop]
    return _places_of.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_RUNNING))
