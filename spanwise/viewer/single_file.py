"""The page as one file: markup, style, scripts and data, to send to somebody."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from spanwise.run.folder import RunError
from spanwise.viewer.folder import ViewedRun
from spanwise.viewer.server import SCRIPTS, STYLE, Viewer, page_file

MOST_LINES = 2000
"""Lines of metrics that a run keeps in an exported page."""

TREE_BYTES = 12 * 2**20
"""Characters of trees in an exported page, over all runs."""

MOST_STEPS = 12
"""Steps whose trees are looked at for an exported page, evenly over the run."""


def export(viewer: Viewer, path: Path) -> None:
    """Write the page with its data as one file.

    A long run is thinned: every so many-th line of its metrics, and the trees of some
    steps, evenly over the run. The page says so.

    Raises:
      RunError: if the file cannot be written.
    """
    budget = TREE_BYTES // len(viewer.runs)
    runs = [
        exported_run(run, state, budget)
        for run, state in zip(viewer.runs, viewer.states(), strict=True)
    ]
    try:
        path.write_text(_page({"runs": runs}), encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def exported_run(run: ViewedRun, state: dict[str, Any], budget: int) -> dict[str, Any]:
    """One run's part of the data: state, metrics, and trees within a budget of characters."""
    lines: list[str] = []
    start, more = 0, True
    while more:
        part = run.metrics(start)
        lines += part["text"].splitlines()
        start, more = part["end"], part["more"]
    notes: list[str] = []
    if len(lines) > MOST_LINES:
        kept = evenly(range(len(lines)), MOST_LINES)
        notes.append(f"this file holds {MOST_LINES} of {len(lines)} lines of metrics")
        lines = [lines[index] for index in kept]
    steps = run.tree_steps()
    chosen = evenly(steps, MOST_STEPS)
    trees: dict[str, Any] = {}
    num_kept = num_trees = 0
    for step in chosen:
        overviews = run.trees(step)
        share, used, kept = budget // len(chosen), 0, []
        for number, tree in enumerate(overviews):
            record = run.tree(step, number)
            used += len(json.dumps(record, ensure_ascii=False))
            if kept and used > share:
                break
            kept.append({"overview": tree, "record": record})
        trees[str(step)] = kept
        num_kept, num_trees = num_kept + len(kept), num_trees + len(overviews)
    if len(chosen) < len(steps) or num_kept < num_trees:
        notes.append(
            f"this file holds {num_kept} trees, of {len(chosen)} of the {len(steps)} steps that "
            "kept theirs"
        )
    state = {**state, "notes": notes, "live": False}
    return {"state": state, "metrics": "\n".join(lines), "trees": trees}


def evenly(items: Any, most: int) -> list[Any]:
    """At most ``most`` of the items, 2 or more, the first and the last among them.

    Example:
      >>> evenly([1, 2, 3, 4, 5], 3), evenly([1, 2], 3)
      ([1, 3, 5], [1, 2])
    """
    items = list(items)
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _page(data: dict[str, Any]) -> str:
    """``index.html`` with everything in it, and a policy that lets nothing else run."""
    script = "\n".join(page_file(name) for name in SCRIPTS)
    style = page_file(STYLE)
    policy = (
        "default-src 'none'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    )
    # Inside a script element only "</" and "<!" mean anything to a browser.
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = page_file("index.html")
    head, rest = page.split("<!-- head -->")
    _, rest = rest.split("<!-- /head -->")
    body, rest = rest.split("<!-- scripts -->")
    _, end = rest.split("<!-- /scripts -->")
    return (
        f'{head}<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{style}</style>{body}"
        f'<script type="application/json" id="data">{payload}</script>\n'
        f"<script>{script}</script>{end}"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
