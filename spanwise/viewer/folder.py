"""A run folder as the page reads it: bit by bit, and never failing as a whole.

The files may be large, may be written at this moment, may be damaged, or may come from a
newer version. So metrics are read from where the last reading ended, trees are found by
the places of their lines, and what cannot be read is said in ``notes``.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanwise.run.folder import SCHEMA, RunError, RunFolder
from spanwise.viewer.records import DamagedLine, overview, parsed_line, readable_record
from spanwise.viewer.vocabulary import add_pieces, read_vocabulary

MOST_BYTES = 8 * 2**20
"""Of metrics, in one answer; the page asks again for the rest."""

STEPS_KEPT = 64
"""Steps whose lines are remembered."""

QUIET_S = 120.0
"""An open_for_resume run that has written nothing for so long is no longer called live."""

_STEP_FILE = re.compile(r"step_(\d{1,9})\.jsonl")


@dataclass(frozen=True)
class StepIndex:
    """Where the trees of a step lie in its file."""

    stamp: tuple[int, int]
    """Modification time and size of the file that was read."""

    places: list[tuple[int, int]]
    """First byte and length of each line."""

    trees: list[dict[str, Any] | None]
    """The overview of each; None for a line that cannot be read."""


class ViewedRun:
    """Reads one run folder.

    Args:
      folder: Of a run; symbolic links that lead out of it are not followed.

    Raises:
      RunError: if it is no folder, or nothing in it looks like a run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.log = RunFolder(self.folder)
        if not self.folder.is_dir():
            raise RunError(f"there is no run folder {folder}")
        if not any((self.folder / n).exists() for n in ("config.json", "metrics.jsonl", "trees")):
            raise RunError(
                f"{folder} is no run folder: it has no config.json, no metrics.jsonl and no trees"
            )
        self._indices: OrderedDict[int, StepIndex] = OrderedDict()
        self._vocabulary: tuple[float, dict[int, str] | None] = (0.0, None)
        self._lock = threading.Lock()

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def state(self) -> dict[str, Any]:
        """Configuration, summary, how far the run is, and notes on what cannot be read."""
        notes: list[str] = []
        config = self._json(self.log.config_path, notes)
        summary = self._json(self.log.summary_path, notes, optional=True)
        if config is not None and config.get("schema") != SCHEMA:
            notes.append(
                f"config.json says schema {config.get('schema')}, this version knows {SCHEMA}: "
                "what it recognises is shown, the rest is not"
            )
        size, age = 0, None
        if self._inside(self.metrics_path):
            found = self.metrics_path.stat()
            size, age = found.st_size, time.time() - found.st_mtime
            if size and (summary is not None or age > QUIET_S) and not self._ends_whole():
                notes.append("metrics.jsonl: the last line is cut off and left out")
        elif summary is not None:
            notes.append("metrics.jsonl is missing: there are no curves")
        return {
            "name": self.folder.name,
            "config": config,
            "summary": summary,
            "metrics_bytes": size,
            "live": summary is None and age is not None and age < QUIET_S,
            "notes": notes,
        }

    def metrics(self, start: int = 0) -> dict[str, Any]:
        """Whole lines of ``metrics.jsonl`` from a byte on.

        Returns:
          ``text``, the byte ``start`` it begins at (0 if the file has become shorter), the
          byte ``end`` to ask for next, and whether there is ``more`` already.
        """
        if not self._inside(self.metrics_path):
            return {"start": 0, "end": 0, "text": "", "more": False}
        with self.metrics_path.open("rb") as file:
            size = file.seek(0, 2)
            start = start if 0 <= start <= size else 0
            file.seek(start)
            found = file.read(MOST_BYTES)
        found = found[: found.rfind(b"\n") + 1]
        end = start + len(found)
        return {
            "start": start,
            "end": end,
            "text": found.decode("utf-8", errors="replace"),
            "more": bool(found) and end < size and len(found) > MOST_BYTES // 2,
        }

    def tree_steps(self) -> list[int]:
        """The steps whose trees are there, in order."""
        trees = self.folder / "trees"
        if not self._inside(trees):
            return []
        names = (_STEP_FILE.fullmatch(path.name) for path in trees.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def trees(self, step: int) -> dict[str, Any]:
        """An overview of the trees of a step, None for those that cannot be read, and notes.

        Raises:
          RunError: if the step has no trees.
        """
        index = self._index(step)
        damaged = sum(tree is None for tree in index.trees)
        notes = [f"{damaged} of {len(index.trees)} trees of step {step} cannot be read"]
        return {"step": step, "trees": index.trees, "notes": notes if damaged else []}

    def tree(self, step: int, number: int) -> dict[str, Any]:
        """One tree, whole (see ``viewer.records``).

        Raises:
          RunError: if there is none, or it cannot be read.
        """
        index = self._index(step)
        if not 0 <= number < len(index.places):
            raise RunError(f"step {step} has trees 0 to {len(index.places) - 1}, not {number}")
        first, length = index.places[number]
        with self.log.trees_path(step).open("rb") as file:
            file.seek(first)
            line = file.read(length)
        try:
            record = readable_record(parsed_line(line))
        except DamagedLine as error:
            raise RunError(f"tree {number} of step {step} cannot be read: {error}") from error
        vocabulary = self._read_vocabulary()
        for node in record["nodes"]:
            add_pieces(node, vocabulary)
        return {"step": step, "number": number, **record}

    def _index(self, step: int) -> StepIndex:
        path = self.log.trees_path(step)
        if not self._inside(path):
            raise RunError(f"{self.folder.name} has no trees of step {step}")
        found = path.stat()
        stamp = (found.st_mtime_ns, found.st_size)
        with self._lock:
            index = self._indices.get(step)
        if index is None or index.stamp != stamp:
            index = _read_index(path, stamp)
        with self._lock:
            self._indices[step] = index
            self._indices.move_to_end(step)
            while len(self._indices) > STEPS_KEPT:
                self._indices.popitem(last=False)
        return index

    def _read_vocabulary(self) -> dict[int, str] | None:
        """Of the first checkpoint that has one; looked for again every ten seconds."""
        when, vocabulary = self._vocabulary
        if when == 0.0 or (vocabulary is None and time.monotonic() - when > 10):
            for path in sorted(self.folder.glob("checkpoints/*/tokenizer.json")):
                if self._inside(path) and (vocabulary := read_vocabulary(path)) is not None:
                    break
            self._vocabulary = (time.monotonic(), vocabulary)
        return vocabulary

    def _json(self, path: Path, notes: list[str], *, optional: bool = False) -> Any:
        if not self._inside(path):
            if not optional:
                notes.append(f"{path.name} is missing: there are no settings to show")
            return None
        try:
            found = parsed_line(path.read_bytes())
        except (OSError, DamagedLine) as error:
            notes.append(f"{path.name} cannot be read: {error}")
            return None
        return found

    def _ends_whole(self) -> bool:
        with self.metrics_path.open("rb") as file:
            file.seek(-1, 2)
            return file.read() == b"\n"

    def _inside(self, path: Path) -> bool:
        """Whether the path is there, and there in this folder."""
        return path.exists() and path.resolve().is_relative_to(self.folder)


def _read_index(path: Path, stamp: tuple[int, int]) -> StepIndex:
    places: list[tuple[int, int]] = []
    trees: list[dict[str, Any] | None] = []
    first = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                places.append((first, len(line)))
                try:
                    trees.append(overview(readable_record(parsed_line(line))))
                except DamagedLine:
                    trees.append(None)
            first += len(line)
    return StepIndex(stamp=stamp, places=places, trees=trees)


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
