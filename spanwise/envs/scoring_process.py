"""Calls made in a process of their own, which the kernel ends at the deadline: scores above all.

A thread cannot be stopped, and one that computes ``9**9**9`` holds the interpreter lock, so
that not even a deadline in another thread would fire: one such answer from the model would
stop the run for good. A process can be ended at any moment. It is kept for the next score,
since importing a computer algebra system takes seconds and a score takes milliseconds.

Some scorers evaluate the answer as Python, so the process may run what a model wrote. It is
refused files to write, processes and connections, and what it sends back is read as JSON,
never unpickled. That stops accidents and what a policy may stumble on; it is no sandbox.

All have the same hash seed, so that what iterates over sets of strings comes out the same
in every run.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")

Request = tuple[str, Callable[..., Any], tuple[Any, ...], float]
"""Package, function, arguments, deadline in seconds; 0 is none."""

MAX_ANSWER_BYTES = 100_000
"""Of a score, which what a model wrote may try to make very long."""

HASH_SEED = "0"

MAX_PROCESSES = min(4, os.cpu_count() or 1)

FORBIDDEN = frozenset(
    [
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "os.forkpty",
        "os.kill",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.chmod",
        "os.chown",
        "os.link",
        "os.symlink",
        "os.truncate",
        "subprocess.Popen",
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "shutil.rmtree",
    ]
)
"""Events of the interpreter's audit that no score needs; to open a file to write is another."""

_idle: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()
_room = threading.BoundedSemaphore(MAX_PROCESSES)


class ScoringError(RuntimeError):
    """There is no score. The message is one line for a person."""


class ScoringTimeout(ScoringError):
    """There was no score before the deadline."""


async def scored(function: Callable[..., T], *arguments: Any, package: str, deadline_s: float) -> T:
    """``function(*arguments)``, computed in a scoring process.

    At most ``MAX_PROCESSES`` scores are computed at once; the others wait, and waiting
    does not count towards the deadline. Neither does importing the package.

    Args:
      function: A function of a module, found again by its name.
      arguments: Anything that can be pickled; the result is a JSON value.
      package: What the function imports, by name.
      deadline_s: In seconds.

    Raises:
      ScoringTimeout: at the deadline.
      ScoringError: if the function raised anything, or the process died.
    """
    request = (package, function, arguments, deadline_s)
    return cast(T, await asyncio.to_thread(_answer, request, MAX_ANSWER_BYTES))


def generated(function: Callable[..., T], *arguments: Any, package: str) -> T:
    """``function(*arguments)``, however long it takes and however much it returns.

    Raises:
      ScoringError: if the function raised anything, or the process died.
    """
    return cast(T, _answer((package, function, arguments, 0.0), -1))


def _answer(request: Request, max_bytes: int) -> Any:
    with _room:
        process = _ready_process()
        try:
            value, fault = _exchanged(process, request, max_bytes)
        except (OSError, EOFError, ValueError):
            code = _end(process)
            if code == -signal.SIGALRM:
                raise ScoringTimeout(f"no score in {request[3]:g} s") from None
            raise ScoringError(f"the scoring process died with exit status {code}") from None
        except BaseException:
            _end(process)
            raise
        _idle.put(process)
    if fault is not None:
        raise ScoringError(fault)
    return value


def _exchanged(
    process: subprocess.Popen[bytes], request: Request, max_bytes: int
) -> tuple[Any, str | None]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(pickle.dumps(request))
    process.stdin.flush()
    answer: Any = json.loads(process.stdout.readline(max_bytes) or "null")
    if not isinstance(answer, list) or len(cast(list[Any], answer)) != 2:
        raise EOFError
    value, fault = cast(list[Any], answer)
    return value, fault if fault is None else str(fault)


def _ready_process() -> subprocess.Popen[bytes]:
    while not _idle.empty():
        with contextlib.suppress(queue.Empty):  # another thread was faster
            process = _idle.get_nowait()
            if process.poll() is None:
                return process
    return subprocess.Popen(
        [sys.executable, "-c", "from spanwise.envs.scoring_process import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
            "PYTHONHASHSEED": HASH_SEED,
        },
        start_new_session=True,  # Ctrl-C is for the run, which then ends this process
    )


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process that may have ended, and say how it did."""
    try:
        process.wait(timeout=0.5)  # one that died by itself: keep its own exit status
    except subprocess.TimeoutExpired:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written cannot be
            if pipe is not None:
                pipe.close()
    return process.wait()


@atexit.register
def _end_all() -> None:
    while True:
        try:
            process = _idle.get_nowait()
        except queue.Empty:
            return
        process.kill()
        process.wait()


def serve() -> None:
    """What a scoring process does: answer requests until its standard input ends.

    The deadline is an alarm of the kernel's with its default action, which ends the
    process whatever it is doing, also when nobody is left to wait for it.
    """
    requests = sys.stdin.buffer
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a scorer prints is no result
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    guarded = False
    while True:
        try:
            package, function, arguments, deadline_s = pickle.load(requests)
            importlib.import_module(package)
        except EOFError:
            return
        except Exception as error:  # a module is missing
            results.write(_answer_line(None, _line(error)))
            results.flush()
            continue
        if not guarded:
            sys.addaudithook(_refuse)
            guarded = True
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            answer = _answer_line(function(*arguments), None)
        except BaseException as error:
            answer = _answer_line(None, _line(error))
        signal.setitimer(signal.ITIMER_REAL, 0)
        results.write(answer)
        results.flush()


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _answer_line(value: Any, fault: str | None) -> bytes:
    return json.dumps([value, fault]).encode() + b"\n"


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN or (event == "open" and _writes(*arguments[1:3])):
        raise PermissionError(f"{event} is not allowed while an answer is scored")


def _writes(mode: str | None, flags: int) -> bool:
    return any(letter in (mode or "") for letter in "wax+") or bool(flags & os.O_ACCMODE)
