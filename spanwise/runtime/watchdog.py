"""Reports waits that take long, and ends a program that waits for ever."""

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

POLL_S = 1.0
"""Longest pause of the watchdog, which looks at least ten times before a report is due."""

GRACE_S = 60.0
"""Seconds that a program which was told to stop has before its process is ended."""

STDERR = 2


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """How long one wait may take before it is reported, and before the program is stopped.

    The deadlines of calls end what waits for them. The watchdog is for what no deadline
    reaches: code that blocks the event loop, a computation or a disk that hangs. It looks
    from a thread of its own.

    A program that is to stop is sent SIGTERM, as one would by hand, and can end in order if
    the wait ends within a minute; else the stacks of all threads are printed and the process
    ends with exit status 1.

    Raises:
      ValueError: if a time is negative.
    """

    report_after_s: float = 60.0
    """Seconds after which a wait is reported, and again each time they have doubled; 0: never."""

    stop_after_s: float = 7200.0
    """Seconds after which one wait stops the run; 0: never."""

    def __post_init__(self) -> None:
        if self.report_after_s < 0 or self.stop_after_s < 0:
            raise SpanwiseError(
                "watchdog.report_after_s and watchdog.stop_after_s must be 0 or more, got "
                f"{self.report_after_s} and {self.stop_after_s}"
            )

    @contextlib.contextmanager
    def watching(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Watch until the context ends.

        ``tell`` shows one line to a person, and is called from another thread. Outside the main
        thread, to which a signal goes, nothing is ever stopped.
        """
        main = threading.current_thread() is threading.main_thread()
        stops = self.stop_after_s if main else 0.0
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
    """The work of the watchdog's thread."""

    def __init__(self, report_after_s: float, stop_after_s: float, tell: Callable[[str], None]):
        self._report_after_s, self._stop_after_s, self._tell = report_after_s, stop_after_s, tell
        self._told: tuple[Wait | None, int] = None, 0
        self._stopped: tuple[Wait, float] | None = None

    def until(self, over: threading.Event) -> None:
        """Look at the waits again and again until ``over`` is set."""
        shortest = min(limit for limit in (self._report_after_s, self._stop_after_s) if limit)
        while not over.wait(min(POLL_S, shortest / 10)):
            self.set_timer()
            self.look()

    def set_timer(self) -> None:
        """Have all stacks printed and the process ended unless this is called again in time.

        Code that holds the interpreter lock stops this thread, but not that timer.
        """
        if self._stop_after_s:
            limit_s = self._stop_after_s + GRACE_S
            faulthandler.dump_traceback_later(limit_s, exit=True, file=STDERR)

    def look(self) -> None:
        """Report or stop, if either is due."""
        now, waits = time.monotonic(), open_waits()
        if self._stopped is not None:
            wait, at = self._stopped
            if now - at > GRACE_S and wait in waits:
                self._tell(f"{wait.what} did not end; the process does, and can be resumed")
                faulthandler.dump_traceback(file=STDERR)
                os._exit(1)
        elif waits and self._stop_after_s and now - waits[0].since > self._stop_after_s:
            self._tell(f"stopping: {_report(waits, now)}")
            self._stopped = waits[0], now
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        elif waits and self._report_after_s:
            times = self._told[1] if self._told[0] is waits[0] else 0
            if now - waits[0].since > self._report_after_s * 2**times:
                self._tell(_report(waits, now))
                self._told = waits[0], times + 1


def _report(waits: list[Wait], now: float) -> str:
    """The oldest wait, its age, and the number of others."""
    age_s = now - waits[0].since
    began = time.strftime("%H:%M:%S", time.localtime(time.time() - age_s))
    others = f", and for {len(waits) - 1} more" if len(waits) > 1 else ""
    return f"waiting since {began} ({age_s:.3g} s) for {waits[0].what}{others}"
