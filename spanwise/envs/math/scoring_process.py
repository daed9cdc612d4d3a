"""Scores computed in throw-away processes, which are ended at the deadline.

A thread cannot be stopped, and one that holds the interpreter lock, as ``9**9**9`` in an answer
does, stops all others: not even a deadline would be noticed. And what a model wrote may do
more to a scorer than fail: whatever it changes must not reach the next score. So each score is
computed in a process of its own, a fork of one that has imported the scorer and has seen
neither an answer nor a reference; a fork costs milliseconds, an import of a computer algebra
system seconds. The forked process gives up what it does not need (``confinement``), reads its
call from a socket of its own, and what it answers is read as JSON, never unpickled.

The processes that are forked from are plain children with a short environment, not those of
``multiprocessing``, whose workers import the user's main module again. All have the same hash
seed, so that iterating over a set of strings gives the same order in every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from spanwise.envs.math.confinement import confine, end_with_parent
from spanwise.errors import one_line
from spanwise.tools.base import ToolError

T = TypeVar("T")

Preload = tuple[Callable[..., Any], *tuple[Any, ...]]
"""A function of a module and its arguments: what is called once, before anything is scored."""

MAX_ANSWER_BYTES = 10_000
"""Longest score, which what a model wrote may try to make very long."""

START_S = 120.0
"""Seconds a process has to start and to import what it is to call."""

GRACE_S = 5.0
"""Seconds after a deadline at which a process that should have ended a score is ended itself."""

HASH_SEED = "0"

MAX_PROCESSES = min(4, os.cpu_count() or 1)

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
"""What the processes see of the environment; the rest may hold keys and passwords."""

_CALL = struct.Struct("=d")  # the deadline in seconds; 0 for none, and then no confinement


class ScoringError(ToolError):
    """There is no score. The message is one line for a person."""

    kind = "reward_error"


class ScoringTimeout(ScoringError):
    """There was no score before the deadline."""

    kind = "reward_timeout"


async def scored(
    function: Callable[..., T], *arguments: Any, preload: Preload, deadline_s: float
) -> T:
    """``function(*arguments)``, computed in a process of its own.

    At most ``MAX_PROCESSES`` scores are computed at once; the others wait. Neither waiting
    nor preloading counts towards the deadline.
    The function is one of a module, the arguments can be pickled, the result is a JSON value.

    Raises:
      ScoringTimeout: at the deadline.
      ScoringError: if the function raised anything, or the process died.
    """
    call = function, arguments, preload, deadline_s, MAX_ANSWER_BYTES
    return cast(T, await asyncio.wrap_future(_threads.submit(_called, *call)))


async def scored_or_none(
    function: Callable[..., T],
    *arguments: Any,
    sound: tuple[Any, ...],
    preload: Preload,
    deadline_s: float,
) -> T | None:
    """``function(*arguments)``; None if that fails and ``function(*sound)`` does not.

    With the reference itself for the answer, ``sound`` tells a scorer that is broken from an
    answer that breaks it: one that never ends, fills the memory, or kills its process.

    Raises:
      ScoringError: what the sound call raised.
    """
    try:
        return await scored(function, *arguments, preload=preload, deadline_s=deadline_s)
    except ScoringError:
        await scored(function, *sound, preload=preload, deadline_s=deadline_s)
        return None


def generated(function: Callable[..., T], *arguments: Any, preload: Preload) -> T:
    """``function(*arguments)``, however long it takes and however much it returns.

    Only for what no model wrote: nothing is forbidden to it.
    """
    return cast(T, _threads.submit(_called, function, arguments, preload, None, None).result())


_threads = ThreadPoolExecutor(MAX_PROCESSES, "scoring")
_of_thread = threading.local()


def _called(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    preload: Preload,
    deadline_s: float | None,
    max_bytes: int | None,
) -> Any:
    """Make a call by the process of this thread, or by a new one in place of it."""
    origin: _Origin | None = getattr(_of_thread, "origin", None)
    if origin is None or not origin.is_alive or origin.preload != preload:
        if origin is not None:
            origin.end()
        origin = _of_thread.origin = _Origin(preload)
    try:
        value, error = origin.call(pickle.dumps((function, arguments)), deadline_s, max_bytes)
    except _OriginLost as lost:
        origin.end()
        raise ScoringError(str(lost)) from None
    if error is not None:
        raise ScoringError(error)
    return value


class _OriginLost(Exception):
    """The process that scores are forked from is gone or does not answer."""


class _Origin:
    """A process that forks another for each call, one at a time, until nobody is left to ask."""

    def __init__(self, preload: Preload) -> None:
        self.preload = preload
        self._control, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {_path()}; "
            f"from {__name__} import serve; serve({theirs.fileno()})"
        )
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={k: os.environ[k] for k in KEPT_VARIABLES if k in os.environ}
                | {"PYTHONHASHSEED": HASH_SEED, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the run, which then ends this process
            )
        try:
            _send(self._control, pickle.dumps(preload))
            if failed := self._said(START_S):
                raise ScoringError(failed)
        except _OriginLost as lost:
            self.end()
            raise ScoringError(str(lost)) from None
        except ScoringError:
            self.end()
            raise

    @property
    def is_alive(self) -> bool:
        return self._control.fileno() >= 0 and self._child.poll() is None

    def call(
        self, request: bytes, deadline_s: float | None, max_bytes: int | None
    ) -> tuple[Any, str | None]:
        """The function's result, and what it raised, if anything."""
        patience = None if deadline_s is None else deadline_s + GRACE_S
        ours, theirs = socket.socketpair()
        ours.settimeout(patience)
        with ours:
            with theirs:
                try:
                    socket.send_fds(
                        self._control, [_CALL.pack(deadline_s or 0.0)], [theirs.fileno()]
                    )
                except OSError:
                    raise _OriginLost(f"the scoring process died {self._manner()}") from None
            with contextlib.suppress(OSError):  # a process that died says so below
                ours.sendall(request)
                ours.shutdown(socket.SHUT_WR)
            answer = _received(ours, max_bytes)
        if manner := self._said(patience):
            if manner == "late":
                raise ScoringTimeout(f"no answer in {deadline_s:g} s")
            raise ScoringError(f"the scoring process died {manner}")
        try:
            value, error = json.loads(answer)
            return value, None if error is None else one_line(str(error))
        except (ValueError, TypeError, RecursionError):
            raise ScoringError(f"the answer is no JSON of at most {max_bytes} bytes") from None

    def _said(self, patience: float | None) -> str:
        """The next line of the process, without its end."""
        self._control.settimeout(patience)
        said = b""
        while not said.endswith(b"\n"):
            try:
                part = self._control.recv(4096)
            except OSError:
                part = b""
            if not part:
                raise _OriginLost(f"the scoring process died {self._manner()}")
            said += part
        return said.decode(errors="replace").strip()

    def _manner(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _manner(self._child.wait(timeout=1.0))
        return "without a word"

    def end(self) -> None:
        """End the process, which ends what it forked."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def _path() -> list[str]:
    """Where modules are looked for; in the standard library first, not in the current folder."""
    stdlib = os.path.dirname(sysconfig.get_path("stdlib"))

    def is_other(folder: str) -> bool:
        return not folder.startswith(stdlib) or "-packages" in folder

    return sorted((folder or os.getcwd() for folder in sys.path), key=is_other)


def _send(to: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # that it is gone shows when it is asked
        to.sendall(struct.pack("=Q", len(message)) + message)


def _received(channel: socket.socket, max_bytes: int | None) -> bytes:
    """All that comes until the other end is closed, but hardly more than ``max_bytes``."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(OSError):
        while part := channel.recv(1 << 16):
            parts.append(part)
            size += len(part)
            if max_bytes is not None and size > max_bytes:
                return b""
    return b"".join(parts)


def _manner(code: int) -> str:
    return f"of {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"


# In the process that is forked from


def serve(descriptor: int) -> None:
    """Preload, then fork a process for each call until the connection closes."""
    control = socket.socket(fileno=descriptor)
    try:
        (size,) = struct.unpack("=Q", control.recv(8, socket.MSG_WAITALL))
        function, *arguments = pickle.loads(control.recv(size, socket.MSG_WAITALL))
        function(*arguments)
        said = ""
    except BaseException as error:
        said = one_line(error)
    with contextlib.suppress(OSError):
        control.sendall(f"{said}\n".encode())
        gc.collect()
        gc.freeze()  # the collector of a fork would write to, and so copy, every page
        while not said:
            call, descriptors, _, _ = socket.recv_fds(control, _CALL.size, 1)
            if not call:
                return
            (deadline_s,) = _CALL.unpack(call)
            manner = _made(descriptors[0], deadline_s or None, control)
            control.sendall(f"{manner}\n".encode())


def _made(channel: int, deadline_s: float | None, control: socket.socket) -> str:
    """Have a call made by a fork: empty, or how it ended in place of answering."""
    ends, held = os.pipe()
    if (child := os.fork()) == 0:
        try:
            control.close()
            os.close(ends)
            _answer(channel, deadline_s)
        finally:
            os._exit(0)
    os.close(channel)
    os.close(held)
    # readable: the pipe, once the last process that holds it has ended; the control, if nobody
    # is left to ask
    ended, _, _ = select.select([ends, control], [], [], deadline_s)
    os.close(ends)
    for kill in (os.kill, os.killpg):  # it may not have had the time to lead a group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "late" if not ended else _manner(code) if code else ""


def _answer(channel: int, deadline_s: float | None) -> None:
    """Called in a fork: read the call, make it, and write what came of it."""
    os.setsid()
    end_with_parent()
    parts: list[bytes] = []
    while part := os.read(channel, 1 << 16):
        parts.append(part)
    try:
        function, arguments = pickle.loads(b"".join(parts))  # from who asks; imports a module
        if deadline_s is not None:
            confine(deadline_s)
        answer = json.dumps([function(*arguments), None]).encode()
    except BaseException as error:
        answer = json.dumps([None, one_line(error)]).encode()
    while answer:
        answer = answer[os.write(channel, answer) :]
