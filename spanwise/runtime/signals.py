"""Ctrl-C and SIGTERM: the first asks for a stop that can be resumed, the second ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from spanwise.runtime.distributed import ALONE, Ranks

_STOPPING = b"\nspanwise: stopping at the next point to go on from; again to end at once\n"


class Stopped(Exception):
    """A signal stopped the program, which can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """While this context is open, the first signal cancels the event loop's tasks.

    Work outside an event loop comes to its end; then ``check`` raises. Outside the main
    thread, where Python delivers no signals, nothing changes. The ``ranks`` stop together,
    whichever of them the signal came to.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``Stopped`` if a signal came to any rank; every rank has to ask."""
        came = [number for number in self.ranks.gather(self.received) if number is not None]
        if came:
            raise Stopped(came[0])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        if self.ranks.is_main:
            with contextlib.suppress(OSError):  # nobody may be there to read it
                os.write(2, _STOPPING)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        loop.call_soon_threadsafe(_cancel_all, loop)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
