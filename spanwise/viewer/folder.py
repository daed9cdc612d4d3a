"""A run folder as the page reads it, also while the run still writes.

Metrics are read on from where the last reading ended, and a tree is found by the place of
its line, so that a folder of many gigabytes opens at once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from spanwise.run.folder import RunError, other_schema
from spanwise.viewer.files import Absent, listed, opened
from spanwise.viewer.records import DAMAGED, is_flat, overview, parsed, shown_record
from spanwise.viewer.vocabulary import add_pieces, vocabulary_of

T = TypeVar("T")

MOST_BYTES = 8 * 2**20
"""Most bytes of metrics in one answer; the page asks again for the rest."""

MOST_IN_MEMORY = 256 * 2**20
"""Most bytes of one tree, or of a whole file that is no list of lines."""

QUIET_S = 120.0
"""Seconds without a new line of metrics after which an unfinished run is no longer called live."""

MOST_KEPT = 64
"""Files of which what was read is remembered while they stay as they are."""

_STEP_FILE = re.compile(r"step_([0-9]{1,9})\.jsonl")


class StepIndex(NamedTuple):
    """First byte and length of each tree of a step in its file, and its overview."""

    places: list[tuple[int, int]]
    trees: list[dict[str, Any]]


class ViewedRun:
    """Reads one run folder, which may be damaged or mean harm. No link in it is followed.

    Raises:
      RunError: if it is no run folder, cannot be read, or another version of spanwise wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._kept: dict[Hashable, Any] = {}
        try:
            self.config = self._object("config.json")
        except Absent as error:
            raise RunError(f"{folder} is no run folder: it has no config.json") from error
        except RunError as error:
            raise RunError(f"{folder} cannot be shown: {error}") from error
        if refusal := other_schema(self.config):
            raise RunError(f"{folder} {refusal}")
        settings, recipe = self.config.get("config"), self.config.get("recipe")
        if not (isinstance(settings, dict) and isinstance(recipe, str)):
            raise RunError(f"{folder} cannot be shown: config.json names no recipe and settings")

    def state(self) -> dict[str, Any]:
        """Configuration, summary, how far the run is, and ``notes`` on what cannot be read."""
        summary, size, live, notes = None, 0, False, list[str]()
        try:
            summary = self._object("summary.json")
        except Absent:
            pass
        except RunError as error:
            notes.append(str(error))
        try:
            with opened(self.folder, "metrics.jsonl") as file:
                metrics = os.fstat(file.fileno())
            size = metrics.st_size
            live = summary is None and time.time() - metrics.st_mtime < QUIET_S
        except Absent:
            pass
        except RunError as error:
            notes.append(str(error))
        state = {"config": self.config, "summary": summary, "metrics_bytes": size}
        return {**state, "live": live, "notes": notes}

    def metrics(self, start: int = 0) -> dict[str, Any]:
        """Whole lines of ``metrics.jsonl`` from a byte on.

        Returns:
          ``text``, the byte ``start`` it begins at (0 if the file has become shorter), the
          byte ``end`` to ask for next, and whether there is ``more`` already.
        """
        try:
            file = opened(self.folder, "metrics.jsonl")
        except RunError:  # if there is one that cannot be read, the state says so
            return {"start": 0, "end": 0, "text": "", "more": False}
        with file:
            size = file.seek(0, 2)
            start = start if start <= size else 0
            file.seek(start)
            read = file.read(MOST_BYTES)
        whole = read[: read.rfind(b"\n") + 1]
        end = start + len(whole)
        more = end < size and len(read) == MOST_BYTES and bool(whole)
        return {"start": start, "end": end, "text": whole.decode("utf-8", "replace"), "more": more}

    def tree_steps(self) -> list[int]:
        """The steps whose trees are there, in order.

        Raises:
          RunError: if the trees lie behind a link, or where no folder is.
        """
        try:
            found = listed(self.folder, "trees")
        except Absent:
            return []
        names = (_STEP_FILE.fullmatch(name) for name in found)
        return sorted(int(match[1]) for match in names if match)

    def trees(self, step: int) -> list[dict[str, Any]]:
        """An overview of each tree of a step.

        Raises:
          RunError: if the step has no trees, or they cannot be read.
        """
        with self._trees(step) as file:
            return self._once(file, _index).trees

    def tree(self, step: int, number: int) -> dict[str, Any]:
        """One tree, whole (see ``viewer.records``).

        Raises:
          RunError: if there is none, or it cannot be read.
        """
        with self._trees(step) as file:
            places = self._once(file, _index).places
            if not 0 <= number < len(places):
                raise RunError(f"step {step} has trees 0 to {len(places) - 1}, not {number}")
            first, length = places[number]
            file.seek(first)
            line = file.read(length)
        vocabulary = self._vocabulary()
        try:
            record = shown_record(parsed(line))
            for node in record["nodes"]:
                add_pieces(node, vocabulary)
        except RunError:
            raise
        except DAMAGED as error:
            raise RunError(f"tree {number} of step {step} cannot be read: {error!r}") from error
        return {"step": step, "number": number, **record}

    def _trees(self, step: int) -> BinaryIO:
        try:
            return opened(self.folder, "trees", f"step_{step:05d}.jsonl")
        except Absent as error:
            raise RunError(f"{self.folder.name} has no trees of step {step}") from error

    def _vocabulary(self) -> dict[int, str] | None:
        """The vocabulary of the first checkpoint that has one."""
        try:
            names = listed(self.folder, "checkpoints")
        except RunError:
            return None
        for name in names:
            try:
                with opened(self.folder, "checkpoints", name, "tokenizer.json") as file:
                    return self._once(file, lambda file: vocabulary_of(_whole(file)))
            except RunError:
                continue
        return None

    def _object(self, name: str) -> dict[str, Any]:
        """A file that is one JSON object, of which the page can be told."""
        with opened(self.folder, name) as file:
            text = _whole(file)
        try:
            found = parsed(text)
        except RunError as error:
            raise RunError(f"{name}: {error}") from error
        if not is_flat(found):
            raise RunError(f"{name}: this cannot be shown: it has too many levels")
        return found

    def _once(self, file: BinaryIO, read: Callable[[BinaryIO], T]) -> T:
        """What ``read`` makes of an open file; remembered while the file stays as it is."""
        now = os.fstat(file.fileno())
        key = now.st_dev, now.st_ino, now.st_mtime_ns, now.st_size
        if key in (kept := self._kept):
            return kept[key]
        if len(kept) >= MOST_KEPT:
            kept = self._kept = {}
        found = kept[key] = read(file)
        return found


def _whole(file: BinaryIO) -> bytes:
    text = file.read(MOST_IN_MEMORY + 1)
    if len(text) > MOST_IN_MEMORY:
        raise RunError(f"a file of more than {MOST_IN_MEMORY >> 20} MB is not shown")
    return text


def _index(file: BinaryIO) -> StepIndex:
    """The index of a file of trees."""
    places: list[tuple[int, int]] = []
    trees: list[dict[str, Any]] = []
    first = 0
    while line := file.readline(MOST_IN_MEMORY + 1):
        if len(line) > MOST_IN_MEMORY:
            raise RunError(f"a tree of more than {MOST_IN_MEMORY >> 20} MB is not shown")
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
