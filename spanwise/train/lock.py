"""One process at a time writes to a run folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from spanwise.runlog import RunError, writing


def locked(path: Path) -> IO[str]:
    """A file of the run folder, held by this process until it is closed.

    The lock ends with the process, however that ends, and no process that it starts has it.

    Raises:
      RunError: if another process holds it, or the file cannot be written.
    """
    with writing(path):
        file = path.open("r+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RunError(
            f"another process is training in {path.parent}; wait for its end, or stop it"
        ) from error
    except OSError:
        pass  # a file system without locks: then nothing guards the folder
    return file
