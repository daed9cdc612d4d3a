"""The finished turns of the steps since the last checkpoint.

    journal/00007.jsonl         turns of training step 7
    journal/critic_00002.jsonl  turns of the second batch that the critic alone is fitted on

Whatever is killed, a turn that was written here is not sampled, nor its tool called, again.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import IO, Any

from spanwise.rollout.context import Journal
from spanwise.run.folder import RunError, node_of, node_record, writing
from spanwise.tree import Node
from spanwise.tree import Path as NodePath


class StepJournal(Journal):
    """A file for each step; lines are appended whole, and a torn last line is cut off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._step: int | None = None
        self._file: IO[str] | None = None
        self._found: dict[tuple[str, NodePath, str], Node] = {}

    def lookup(self, step: int, task_id: str, path: NodePath, seen: str) -> Node | None:
        if step != self._step:
            self._open(step)
        return self._found.get((task_id, path, seen))

    def write(self, step: int, task_id: str, node: Node, seen: str) -> Node:
        if step != self._step:
            self._open(step)
        assert self._file is not None
        line = json.dumps({"task": task_id, "seen": seen, "node": node_record(node)})
        with writing(self._path(step)):
            self._file.write(line + "\n")
            self._file.flush()
        return node_of(json.loads(line)["node"])  # what a resumed run will see

    def clear(self, *, but: int | None = None) -> None:
        """Forget all turns, which a checkpoint has replaced, but those of the step ``but``."""
        self.close()
        for file in self.folder.glob("*.jsonl"):
            if but is None or file != self._path(but):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take: write told of it
                self._file.close()
        self._step, self._file, self._found = None, None, {}

    def _open(self, step: int) -> None:
        self.close()
        path = self._path(step)
        with writing(path):
            self.folder.mkdir(exist_ok=True)
            path.touch()
            whole = path.read_bytes().rpartition(b"\n")
            with path.open("r+b") as file:
                file.truncate(len(whole[0]) + len(whole[1]))
        try:
            for line in whole[0].splitlines():
                entry: Any = json.loads(line)
                node = node_of(entry["node"])
                self._found[entry["task"], node.path, entry["seen"]] = node
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged: {error}; remove it to have its turns sampled again"
            ) from error
        with writing(path):
            self._file = path.open("a", encoding="utf-8")
        self._step = step

    def _path(self, step: int) -> Path:
        name = f"{step:05d}" if step > 0 else f"critic_{1 - step:05d}"
        return self.folder / f"{name}.jsonl"
