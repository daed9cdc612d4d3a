"""Scores computed in a process of their own, which is ended at the deadline.

One answer from the model that is computed as ``9**9**9`` would else stop the run for good: see
``tools.process``. Importing a computer algebra system takes seconds and a score takes
milliseconds, so processes are kept.

Some scorers evaluate the answer as Python, so the process may run what a model wrote. It is
refused files to write, processes and connections. That stops accidents and what a policy may
stumble on; it is no sandbox.

All have the same hash seed, so that what iterates over sets of strings comes out the same
in every run.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from spanwise.tools.process import (
    START_S,
    ChildProcess,
    ProcessDied,
    ProcessFault,
    ProcessTimeout,
)
from spanwise.tree import Failure, FailureKind

T = TypeVar("T")

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

_idle: list[ChildProcess] = []
_room = threading.BoundedSemaphore(MAX_PROCESSES)


class ScoringError(RuntimeError):
    """There is no score. The message is one line for a person."""

    kind: ClassVar[FailureKind] = "reward_error"

    def failure(self) -> Failure:
        """For the record."""
        return Failure(kind=self.kind, message=str(self))


class ScoringTimeout(ScoringError):
    """There was no score before the deadline."""

    kind = "reward_timeout"


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
    call = _scored, function, arguments, package, deadline_s, MAX_ANSWER_BYTES
    return cast(T, await asyncio.to_thread(*call))


def generated(function: Callable[..., T], *arguments: Any, package: str) -> T:
    """``function(*arguments)``, however long it takes and however much it returns.

    Raises:
      ScoringError: if the function raised anything, or the process died.
    """
    return cast(T, _scored(function, arguments, package, None, None))


def _scored(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    package: str,
    deadline_s: float | None,
    max_bytes: int | None,
) -> Any:
    with _room:
        process = None
        try:
            process = _ready_process()
            process.call(_prepare, package, function, deadline_s=START_S)
            return process.call(function, *arguments, deadline_s=deadline_s, max_bytes=max_bytes)
        except ProcessTimeout as error:
            raise ScoringTimeout(str(error)) from None
        except ProcessDied as error:
            raise ScoringError(f"the scoring {error}") from None
        except ProcessFault as error:
            raise ScoringError(str(error)) from None
        finally:
            if process is not None and process.is_alive:
                _idle.append(process)


def _ready_process() -> ChildProcess:
    while _idle:
        process = _idle.pop()
        if process.is_alive:
            return process
    return ChildProcess({"PYTHONHASHSEED": HASH_SEED})


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
