"""Scores computed in processes of their own, which are ended at the deadline.

A thread cannot be stopped, and one that holds the interpreter lock, as ``9**9**9`` in an
answer does, stops all others: not even a deadline would be noticed. A process can be ended at
any moment. Importing a computer algebra system takes seconds and a score milliseconds, so
processes are kept. They are plain children, not those of ``multiprocessing``, whose workers
import the user's main module again.

Some scorers evaluate the answer as Python, so the process may run what a model wrote. It is
refused files to write, processes and connections, and what it answers is read as JSON, never
unpickled. That stops accidents and what a policy may stumble on; it is no sandbox.

All have the same hash seed, so that iterating over a set of strings gives the same order in
every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar, cast

from spanwise.errors import one_line
from spanwise.tools.base import ToolError

T = TypeVar("T")

MAX_ANSWER_BYTES = 100_000
"""Longest score, which what a model wrote may try to make very long."""

START_S = 120.0
"""Seconds a process has to start and to import what it is to call."""

ORPHAN_S = 5.0
"""Seconds after its deadline at which a call ends its own process, if nobody else has."""

HASH_SEED = "0"

MAX_PROCESSES = min(4, os.cpu_count() or 1)

FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.kill", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
    "os.truncate", "shutil.rmtree", "subprocess.Popen", "socket.connect", "socket.bind",
    "socket.getaddrinfo",
}  # fmt: skip
"""Audit events of the interpreter that no score needs; opening a file to write is another."""


class ScoringError(ToolError):
    """There is no score. The message is one line for a person."""

    kind = "reward_error"


class ScoringTimeout(ScoringError):
    """There was no score before the deadline."""

    kind = "reward_timeout"


async def scored(function: Callable[..., T], *arguments: Any, package: str, deadline_s: float) -> T:
    """``function(*arguments)``, computed in a scoring process.

    At most ``MAX_PROCESSES`` scores are computed at once; the others wait. Neither waiting
    nor importing the package counts towards the deadline.
    The function is one of a module, the arguments can be pickled, the result is a JSON value.

    Raises:
      ScoringTimeout: at the deadline.
      ScoringError: if the function raised anything, or the process died.
    """
    call = function, arguments, package, deadline_s, MAX_ANSWER_BYTES
    return cast(T, await asyncio.wrap_future(_threads.submit(_called, *call)))


def generated(function: Callable[..., T], *arguments: Any, package: str) -> T:
    """``function(*arguments)``, however long it takes and however much it returns."""
    return cast(T, _threads.submit(_called, function, arguments, package, None, None).result())


_threads = ThreadPoolExecutor(MAX_PROCESSES, "scoring")
_of_thread = threading.local()


def _called(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    package: str,
    deadline_s: float | None,
    max_bytes: int | None,
) -> Any:
    """Make a call in the process of this thread, or in a new one in place of it.

    Each package has processes of its own: an import may have to write caches, which a process
    that has scored an answer is refused.
    """
    process: _Process | None = getattr(_of_thread, "process", None)
    if process is None or not process.is_alive or process.package != package:
        if process is not None and process.is_alive:
            process.end()
        process = _of_thread.process = _Process(package)
    try:
        value, error = process.call(_prepare, (package, function), START_S, None)
        if error is None:
            value, error = process.call(function, arguments, deadline_s, max_bytes)
    except BaseException:
        process.end()
        raise
    if error is not None:
        raise ScoringError(error)
    return value


class _Process:
    """A Python process that makes calls, one at a time, until nobody is left to ask."""

    def __init__(self, package: str) -> None:
        self.package = package
        ours, theirs = Pipe()
        code = f"from {__name__} import serve; serve({theirs.fileno()})"
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                    "PYTHONHASHSEED": HASH_SEED,
                },
                start_new_session=True,  # Ctrl-C is for the run, which then ends this process
            )
        self._connection = cast("Connection[Any, Any]", ours)

    @property
    def is_alive(self) -> bool:
        return not self._connection.closed and self._child.poll() is None

    def call(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        deadline_s: float | None,
        max_bytes: int | None,
    ) -> tuple[Any, str | None]:
        """The function's result, and what it raised, if anything."""
        try:
            self._connection.send((function, arguments, deadline_s))
            if not self._connection.poll(deadline_s):
                raise ScoringTimeout(f"no answer in {deadline_s:g} s")
            return tuple(json.loads(self._connection.recv_bytes(max_bytes)))
        except (EOFError, ConnectionError):
            raise ScoringError(f"the scoring process died {self._manner()}") from None
        except (OSError, ValueError):
            raise ScoringError(f"the answer is no JSON of at most {max_bytes} bytes") from None

    def _manner(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(timeout=1.0)
            return f"of {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        return "without a word"

    def end(self) -> None:
        """End the process and all that it started."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def serve(descriptor: int) -> None:
    """Answer calls in a scoring process until the connection closes."""
    connection = cast("Connection[Any, Any]", Connection(descriptor))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(EOFError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(request: bytes) -> bytes:
    try:
        function, arguments, deadline_s = pickle.loads(request)
        # Should the process that asked be gone, the kernel ends this one, whatever it does.
        signal.setitimer(signal.ITIMER_REAL, 0 if deadline_s is None else deadline_s + ORPHAN_S)
        return json.dumps([function(*arguments), None]).encode()
    except BaseException as error:
        return json.dumps([None, one_line(error)]).encode()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _prepare(package: str, function: Callable[..., Any]) -> None:
    """Called in a scoring process; that the function was sent along has imported it."""
    importlib.import_module(package)
    if not _guarded:
        sys.addaudithook(_refuse)
        _guarded.append(True)


_guarded: list[bool] = []


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN or (event == "open" and _writes(*arguments[1:3])):
        raise PermissionError(f"{event} is not allowed while an answer is scored")


def _writes(mode: str | None, flags: int) -> bool:
    return any(letter in (mode or "") for letter in "wax+") or bool(flags & os.O_ACCMODE)
