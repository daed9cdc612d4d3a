"""What a finished run leaves behind, so that two runs can be compared byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spanwise.run.folder import RunFolder
from spanwise.train.checkpoint import UNUSED

TIMES = ("seconds/", "train_seconds", "peak_memory_mb", "abandoned_threads")
"""Figures of the process and not of what it learns."""


def left_behind(folder: Path) -> dict[str, Any]:
    """Everything in a finished run's folder that is to be the same in another, by file."""
    log = RunFolder.open(folder)
    found: dict[str, Any] = {
        "metrics": [untimed(line) for line in log.read_metrics()],
        "summary": untimed(log.read_summary()),
    }
    for path in sorted(folder.glob("trees/*")) + sorted(folder.glob("checkpoints/*/*")):
        name = str(path.relative_to(folder))
        if path.parent.suffix == UNUSED:
            continue
        if path.name == "state.json":
            found[name] = comparable_state(json.loads(path.read_text()))
        elif path.name != "manifest.json":  # it has the hash of the state
            found[name] = path.read_bytes()
    return found


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith(TIMES)}


def comparable_state(state: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on how long things took: the length of the metrics does."""
    return {k: v for k, v in untimed(state).items() if k != "metrics_bytes"}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The files that two runs do not have alike."""
    return sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
