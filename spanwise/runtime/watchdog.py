"""Says what a run waits for when that takes long, and ends a run that waits for ever."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from spanwise.errors import SpanwiseError
from spanwise.runtime.waits import Wait, open_waits

LOOK_S = 1.0
"""How often the watchdog looks, or ten times while a report comes due, if that is sooner."""

GRACE_S = 60.0
"""For a run that is told to stop; after that its process is ended."""

STDERR = 2


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """How long a call or an update may take before something is said, or done, about it.

    Deadlines of tools and engines end what waits for them; the watchdog is for what no
    deadline reaches: code that blocks the event loop, an update or a disk that hangs. It
    looks from a thread of its own.

    A run that is to stop is sent SIGTERM, as one would by hand: it writes a checkpoint, if
    what it waits for ends within a minute; else the stacks of all threads are printed and
    the process ends with exit status 1. Either way it can be resumed.

    Raises:
      ValueError: if a time is negative.
    """

    report_after_s: float = 60.0
    """Say what the run waits for after so many seconds, and again each time they have
    doubled; 0: say nothing."""

    stop_after_s: float = 7200.0
    """Stop the run if one wait takes so many seconds; 0: never."""

    def __post_init__(self) -> None:
        if self.report_after_s < 0 or self.stop_after_s < 0:
            raise SpanwiseError(
                "watchdog.report_after_s and watchdog.stop_after_s must be 0 or more, got "
                f"{self.report_after_s} and {self.stop_after_s}"
            )

    @contextlib.contextmanager
    def watching(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Watch until the context ends.

        Outside the main thread, to which a signal goes, a run is never stopped.

        Args:
          tell: Shows one line to a person; called from another thread.
        """
        stops = self.stop_after_s if _in_main_thread() else 0.0
        if not (self.report_after_s or stops):
            yield
            return
        over = threading.Event()
        watch = _Watch(self.report_after_s, stops, tell)
        watch.set_timer()
        thread = threading.Thread(target=watch.until, args=(over,), daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()


class _Watch:
    """What the thread does."""

    def __init__(self, report_after_s: float, stop_after_s: float, tell: Callable[[str], None]):
        self._report_after_s, self._stop_after_s, self._tell = report_after_s, stop_after_s, tell
        self._told: tuple[Wait | None, int] = None, 0
        self._stopped: tuple[Wait, float] | None = None

    def until(self, over: threading.Event) -> None:
        """Look again and again until it is over."""
        shortest = min(limit for limit in (self._report_after_s, self._stop_after_s) if limit)
        while not over.wait(min(LOOK_S, shortest / 10)):
            self.set_timer()
            self.look()

    def set_timer(self) -> None:
        """Have all stacks printed and the process ended, if this is not called again.

        Code that holds the interpreter lock stops this thread too, but not that timer.
        """
        if self._stop_after_s:
            limit_s = self._stop_after_s + GRACE_S
            faulthandler.dump_traceback_later(limit_s, exit=True, file=STDERR)

    def look(self) -> None:
        """Say or do what is due."""
        now, waits = time.monotonic(), open_waits()
        if self._stopped is not None:
            wait, at = self._stopped
            if now - at > GRACE_S and wait in waits:
                self._tell(f"{wait.what} did not end; the process does, and the run can be resumed")
                faulthandler.dump_traceback(file=STDERR)
                os._exit(1)
        elif waits and self._stop_after_s and now - waits[0].since > self._stop_after_s:
            self._tell(f"stopping: {_said(waits, now)}")
            self._stopped = waits[0], now
            signal.pthread_kill(_main_thread_id(), signal.SIGTERM)
        elif waits and self._report_after_s:
            times = self._told[1] if self._told[0] is waits[0] else 0
            if now - waits[0].since > self._report_after_s * 2**times:
                self._tell(_said(waits, now))
                self._told = waits[0], times + 1


def _said(waits: list[Wait], now: float) -> str:
    """What the oldest wait is for and since when, and how many others there are."""
    age_s = now - waits[0].since
    began = time.strftime("%H:%M:%S", time.localtime(time.time() - age_s))
    others = f", and for {len(waits) - 1} more" if len(waits) > 1 else ""
    return f"waiting since {began} ({age_s:.3g} s) for {waits[0].what}{others}"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _main_thread_id() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident
