"""Calls made in a process of their own, which is ended at the deadline.

A thread cannot be stopped, and one that holds the interpreter lock, as a regular expression
or ``9**9**9`` does, stops all others: not even a deadline would be noticed. A process can be
ended at any moment. It is kept for the next call, since starting one takes a while.

What comes back is read as JSON, never unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection, Pipe
from typing import Any, cast

from spanwise.errors import SpanwiseError
from spanwise.tools.base import Room, Tool, ToolCrash, ToolError, ToolTimeout, in_thread

MAX_BYTES = 16_000_000
"""Of an answer."""

START_S = 120.0
"""For a process to start and to import what it is to call."""

SERVE = "from spanwise.tools.process import serve; serve()"

ORPHAN_S = 5.0
"""So long after its deadline a call ends its own process, if nobody else has."""


class ProcessFault(RuntimeError):
    """A call in another process gave no result. The message is one line for a person."""


class ProcessTimeout(ProcessFault):
    """There was no result before the deadline; the process was ended."""


class ProcessDied(ProcessFault):
    """The process ended by itself."""


class ChildProcess:
    """A Python process that makes calls, one at a time.

    Args:
      environment: Variables it has besides those of this process.

    Raises:
      ProcessFault: if it does not start.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                    **(environment or {}),
                },
                start_new_session=True,  # Ctrl-C is for the run, which then ends this process
            )
        self._connection = cast("Connection[Any, Any]", ours)
        _alive.add(self)
        self.call(abs, 0, deadline_s=START_S)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        deadline_s: float | None,
        max_bytes: int | None = MAX_BYTES,
    ) -> Any:
        """``function(*arguments)``, a JSON value; what is called is pickled, or found by name.

        Raises:
          ProcessTimeout: at the deadline; None is none.
          ProcessDied: if the process died.
          ProcessFault: if the function raised anything, or its result is no JSON value or has
            more than ``max_bytes`` bytes.
        """
        try:
            self._connection.send((function, arguments, deadline_s))
            if not self._connection.poll(deadline_s):
                self.end()
                raise ProcessTimeout(f"no answer in {deadline_s:g} s")
            answer = self._connection.recv_bytes(max_bytes)
        except (EOFError, ConnectionError):
            raise ProcessDied(f"process died {_manner(self.end(wait_s=1.0))}") from None
        except OSError:
            self.end()
            raise ProcessFault(f"the answer has more than {max_bytes} bytes") from None
        except BaseException:
            self.end()
            raise
        value, fault = json.loads(answer)
        if fault is not None:
            raise ProcessFault(str(fault))
        return value

    @property
    def is_alive(self) -> bool:
        """Whether it can be called."""
        return not self._connection.closed and self._process.poll() is None

    def end(self, *, wait_s: float = 0.0) -> int:
        """End the process and all that it started; the exit status.

        Args:
          wait_s: For one that is about to end by itself, so that the status is its own.
        """
        self._connection.close()
        _alive.discard(self)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=wait_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


_alive: set[ChildProcess] = set()


@atexit.register
def _end_all() -> None:
    for process in list(_alive):
        process.end()


def _manner(code: int) -> str:
    return f"of {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"


def serve() -> None:
    """What a child process does: make calls until nobody is left to ask."""
    connection = cast("Connection[Any, Any]", Connection(int(sys.argv[1])))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(_answer(request))


def _answer(request: bytes) -> bytes:
    try:
        function, arguments, deadline_s = pickle.loads(request)
        # Should the process that asked be gone: the kernel ends this one, whatever it does.
        signal.setitimer(signal.ITIMER_REAL, 0 if deadline_s is None else deadline_s + ORPHAN_S)
        return json.dumps([function(*arguments), None]).encode()
    except BaseException as error:
        return json.dumps(
            [None, " ".join(f"{type(error).__name__}: {error}".split())[:500]]
        ).encode()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass(frozen=True, kw_only=True)
class ProcessTool(Tool):
    """Another tool, called in processes of its own: one that hangs or crashes harms nobody.

    For tools that run what a model wrote, or code in C that may never return. At its deadline
    a process is ended with all that it started. Starting one and making the tool in it does not
    count towards the deadline, nor does waiting while all are busy. The tool answers in JSON
    values; this is no sandbox.

    Raises:
      ValueError: if the tool cannot be pickled, or ``num_processes`` is not positive.
    """

    tool: Tool
    """Its class is in a module that can be imported; of its fields each process has a copy."""

    num_processes: int = 4
    """Calls made at once."""

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise SpanwiseError(f"num_processes must be at least 1, got {self.num_processes}")
        try:
            pickle.dumps(self.tool)
        except Exception as error:
            raise SpanwiseError(
                f"{type(self.tool).__name__} cannot be sent to another process ({error}): define "
                "it in a module that can be imported, with fields that can be pickled"
            ) from error

    @property
    def deadline_s(self) -> float:  # type: ignore[override]
        """Of the tool inside."""
        return self.tool.deadline_s

    @cached_property
    def _idle(self) -> list[ChildProcess]:
        return []

    @cached_property
    def _room(self) -> Room:
        return Room(self.num_processes)

    async def __call__(self, query: str) -> Any:
        """Answer a query before the deadline.

        Raises:
          ToolTimeout: at the deadline; the process is ended.
          ToolCrash: if the process died.
          ToolError: if the tool raised anything, cannot be made in a process, or answers no
            JSON value, or one of more than ``MAX_BYTES`` bytes.
        """
        async with self._room.places():
            return await in_thread(lambda: self.call(query))

    def call(self, query: str) -> Any:
        """As ``__call__``, in this thread."""
        name = type(self.tool).__name__
        process = self._ready_process()
        try:
            return process.call(_asked, query, deadline_s=self.deadline_s)
        except ProcessTimeout:
            raise ToolTimeout(f"{name} gave no answer in {self.deadline_s:g} s") from None
        except ProcessDied as error:
            raise ToolCrash(f"{name}: its {error}") from None
        except ProcessFault as error:
            raise ToolError(f"{name}: {error}") from None
        finally:
            if process.is_alive:
                self._idle.append(process)

    def _ready_process(self) -> ChildProcess:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
        process = None
        try:
            process = ChildProcess()
            process.call(_keep, self.tool, deadline_s=START_S)
        except ProcessFault as error:
            if process is not None:
                process.end()
            name = type(self.tool).__name__
            raise ToolError(f"{name} cannot be made in a process of its own: {error}") from None
        return process


_kept: list[Tool] = []


def _keep(tool: Tool) -> None:
    """Called in a child process."""
    _kept[:] = [tool]


def _asked(query: str) -> Any:
    """Called in a child process."""
    return _kept[0].call(query)
