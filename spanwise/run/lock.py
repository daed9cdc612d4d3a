"""One process at a time writes to a run folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from spanwise.run.folder import LOCK, RunError, writing


def locked(folder: Path) -> IO[str]:
    """The lock of a run folder, held by this process until it is closed.

    It ends with the process, however that ends, and no process that it starts has it. The
    folder is made if there is none.

    Raises:
      RunError: if another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RunError(
            f"another process is training in {folder}; wait for its end, or stop it"
        ) from error
    except OSError:
        pass  # a file system without locks: then nothing guards the folder
    return file
