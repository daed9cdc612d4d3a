"""Files of a run folder that may be somebody else's: opened first, then looked at.

What was looked at by its path may be something else by the time it is opened. So every file
is opened without following a link, from the folder down, and its kind is asked of what is
open. Opening never waits, as it would for the writer of a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from spanwise.run.folder import RunError

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Absent(RunError):
    """There is no such file."""


def opened(folder: Path, *names: str) -> BinaryIO:
    """A regular file of a folder, ``names`` below it, open for reading.

    Raises:
      Absent: if there is none.
      RunError: if it is a link, a pipe or a folder, lies behind a link, or may not be read.
    """
    descriptor = _descriptor(folder, names, os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RunError(f"{'/'.join(names)} is not shown: it is no regular file")
    return os.fdopen(descriptor, "rb")


def listed(folder: Path, *names: str) -> list[str]:
    """The names in a folder below a folder, in order.

    Raises:
      Absent: if there is none.
      RunError: if it is no folder, or lies behind a link.
    """
    descriptor = _descriptor(folder, names, os.O_DIRECTORY)
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def _descriptor(folder: Path, names: tuple[str, ...], last: int) -> int:
    """What lies at ``names`` below the folder, opened step by step; ``last`` is for the end."""
    path = "/".join(names) or str(folder)
    at: int | None = None
    for depth, name in enumerate((folder, *names)):
        above = at
        try:
            kind = last if depth == len(names) else os.O_DIRECTORY
            at = os.open(name, _FLAGS | kind, dir_fd=above)
        except FileNotFoundError as error:
            raise Absent(f"{path} is not there") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is not shown: {_reason(error)}") from error
        finally:
            if above is not None:
                os.close(above)
    assert at is not None
    return at


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it is a link, or no folder where one belongs"
    return getattr(error, "strerror", None) or str(error)
