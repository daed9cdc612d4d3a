"""What the page names is there: metrics that runs write."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def strings(script: str, begin: str) -> list[list[str]]:
    """Of each line of a block of a script, the strings that open it or follow a comma."""
    text = (ROOT / "spanwise/viewer/page" / script).read_text(encoding="utf-8")
    block = text.split(begin)[1].split("\n  ]" if begin.endswith("[") else "\n  }")[0]
    return [re.findall(r'"([^"]+)"', line) for line in block.splitlines()]


def test_every_panel_shows_metrics_that_runs_write() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    written = set(re.findall(r"`([^`\s]+)`", page))
    derived = {line[0] for line in strings("data.js", "const DERIVED = {") if line}
    panels = [line for line in strings("runs.js", "const PANELS = [") if line]
    assert len(panels) > 10
    unknown = [
        key
        for _, *keys in panels
        for key in keys
        if key not in written | derived and re.sub(r"^stop/\w+", "stop/KIND", key) not in written
    ]
    assert unknown == []
