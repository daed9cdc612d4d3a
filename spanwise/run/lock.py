"""One process at a time writes to a run folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from spanwise.run.folder import LOCK, RunError, writing


def locked(folder: Path) -> FileLock:
    """The lock of a run folder, held by this process until it is released.

    It ends with the process, however that ends, and processes started meanwhile do not hold
    it. The folder is made if there is none.

    Raises:
      RunError: if another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RunError(
            f"another process is training in {folder}; wait for its end, or stop it"
        ) from error
    except OSError:
        pass  # a file system without locks: then nothing guards the folder
    return lock
