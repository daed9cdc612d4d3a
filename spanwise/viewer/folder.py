"""A run folder as the page reads it, also while the run still writes.

Metrics are read on from where the last reading ended, and a tree is found by the place of
its line, so that a folder of many gigabytes opens at once.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from spanwise.run.folder import RunError, RunFolder
from spanwise.viewer.records import overview, parsed, shown_record
from spanwise.viewer.vocabulary import add_pieces, read_vocabulary

MOST_BYTES = 8 * 2**20
"""Most bytes of metrics in one answer; the page asks again for the rest."""

QUIET_S = 120.0
"""Seconds without a new line of metrics after which an unfinished run is no longer called live."""

_STEP_FILE = re.compile(r"step_(\d{1,9})\.jsonl")


class StepIndex(NamedTuple):
    """First byte and length of each tree of a step in its file, and its overview."""

    places: list[tuple[int, int]]
    trees: list[dict[str, Any]]


class ViewedRun:
    """Reads one run folder; symbolic links that lead out of it are not followed.

    Raises:
      RunError: if it is no run folder, or another version of spanwise wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if not self._inside(self.folder / "config.json"):
            raise RunError(f"{folder} is no run folder: it has no config.json")
        self.log = RunFolder.open(folder)
        self.config = self.log.read_config()

    def state(self) -> dict[str, Any]:
        """Configuration, summary, and how far the run is."""
        summary = None
        if self._inside(self.log.summary_path):
            summary = parsed(self.log.summary_path.read_bytes())
        size, live = 0, False
        if self._inside(self.log.metrics_path):
            metrics = self.log.metrics_path.stat()
            size = metrics.st_size
            live = summary is None and time.time() - metrics.st_mtime < QUIET_S
        return {"config": self.config, "summary": summary, "metrics_bytes": size, "live": live}

    def metrics(self, start: int = 0) -> dict[str, Any]:
        """Whole lines of ``metrics.jsonl`` from a byte on.

        Returns:
          ``text``, the byte ``start`` it begins at (0 if the file has become shorter), the
          byte ``end`` to ask for next, and whether there is ``more`` already.
        """
        if not self._inside(self.log.metrics_path):
            return {"start": 0, "end": 0, "text": "", "more": False}
        with self.log.metrics_path.open("rb") as file:
            size = file.seek(0, 2)
            start = start if start <= size else 0
            file.seek(start)
            read = file.read(MOST_BYTES)
        whole = read[: read.rfind(b"\n") + 1]
        end = start + len(whole)
        more = end < size and len(read) == MOST_BYTES
        return {"start": start, "end": end, "text": whole.decode("utf-8"), "more": more}

    def tree_steps(self) -> list[int]:
        """The steps whose trees are there, in order."""
        trees = self.folder / "trees"
        if not self._inside(trees):
            return []
        names = (_STEP_FILE.fullmatch(path.name) for path in trees.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def trees(self, step: int) -> list[dict[str, Any]]:
        """An overview of each tree of a step.

        Raises:
          RunError: if the step has no trees, or they cannot be read.
        """
        return self._index(step).trees

    def tree(self, step: int, number: int) -> dict[str, Any]:
        """One tree, whole (see ``viewer.records``).

        Raises:
          RunError: if there is none, or it cannot be read.
        """
        places = self._index(step).places
        if not 0 <= number < len(places):
            raise RunError(f"step {step} has trees 0 to {len(places) - 1}, not {number}")
        first, length = places[number]
        with self.log.trees_path(step).open("rb") as file:
            file.seek(first)
            record = shown_record(parsed(file.read(length)))
        vocabulary = self._vocabulary()
        for node in record["nodes"]:
            add_pieces(node, vocabulary)
        return {"step": step, "number": number, **record}

    def _index(self, step: int) -> StepIndex:
        path = self.log.trees_path(step)
        if not self._inside(path):
            raise RunError(f"{self.folder.name} has no trees of step {step}")
        now = path.stat()
        return _read_index(path, now.st_mtime_ns, now.st_size)

    def _vocabulary(self) -> dict[int, str] | None:
        """The vocabulary of the first checkpoint that has one."""
        paths = sorted(self.folder.glob("checkpoints/*/tokenizer.json"))
        return next((read_vocabulary(path) for path in paths if self._inside(path)), None)

    def _inside(self, path: Path) -> bool:
        """True if the path is there, and in this folder."""
        return path.exists() and path.resolve().is_relative_to(self.folder)


@lru_cache(maxsize=64)
def _read_index(path: Path, mtime_ns: int, size: int) -> StepIndex:
    """The index of a file of trees as it was at that time, with that size."""
    places: list[tuple[int, int]] = []
    trees: list[dict[str, Any]] = []
    first = 0
    with path.open("rb") as file:
        for line in file:
            places.append((first, len(line)))
            trees.append(overview(parsed(line)))
            first += len(line)
    return StepIndex(places=places, trees=trees)


def named(folders: list[ViewedRun]) -> list[str]:
    """A name for each: of the folder, with as many parents as tell them apart.

    Raises:
      RunError: if the same folder was given twice.
    """
    paths = [run.folder for run in folders]
    if len(set(paths)) < len(paths):
        raise RunError("the same run folder was given twice")
    depth = 1
    while len(set(names := ["/".join(p.parts[-depth:]) for p in paths])) < len(paths):
        depth += 1
    return names
