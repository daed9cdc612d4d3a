"""The page as one file: markup, style, scripts and data, to send to somebody."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanwise.run.folder import RunError
from spanwise.viewer.folder import ViewedRun
from spanwise.viewer.private import settings_without_private, text_without_private
from spanwise.viewer.records import as_json, parsed
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
    steps, evenly over the run. The page says so, and what could not be read. What is private
    is left out (see ``viewer.private``).

    Raises:
      RunError: if the file cannot be written.
    """
    budget = TREE_BYTES // len(viewer.runs)
    names = told_apart([run.folder.name for run in viewer.runs])
    runs = [
        exported_run(run, {**state, "name": name}, budget)
        for run, state, name in zip(viewer.runs, viewer.states(), names, strict=True)
    ]
    try:
        page = _page(f'{{"runs":[{",".join(runs)}]}}')
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def exported_run(run: ViewedRun, state: dict[str, Any], budget: int) -> str:
    """One run's part of the data: state, metrics, and trees within a budget of characters."""
    lines, notes = _metrics(run)
    steps: list[int] = []
    try:
        steps = run.tree_steps()
    except RunError as error:
        notes.append(str(error))
    chosen = evenly(steps, MOST_STEPS)
    trees: dict[str, list[str]] = {}
    num_trees = 0
    for step in chosen:
        try:
            overviews = run.trees(step)
        except RunError as error:
            notes.append(f"step {step}: {error}")
            continue
        num_trees += len(overviews)
        trees[str(step)] = _trees(run, step, overviews, budget // len(chosen), notes)
    num_kept = sum(map(len, trees.values()))
    if len(chosen) < len(steps) or num_kept < num_trees:
        notes.append(
            f"this file holds {num_kept} trees, of {len(trees)} of the {len(steps)} steps that "
            "kept theirs"
        )
    state = {**state, "notes": [*state["notes"], *notes], "live": False}
    kept = ",".join(f'"{step}":[{",".join(records)}]' for step, records in trees.items())
    told = as_json(settings_without_private(state))
    return f'{{"state":{told},"metrics":{as_json(lines)},"trees":{{{kept}}}}}'


def _metrics(run: ViewedRun) -> tuple[str, list[str]]:
    """Lines of metrics without what is private, and notes on those that are left out."""
    lines: list[str] = []
    start, more = 0, True
    while more:
        part = run.metrics(start)
        lines += part["text"].splitlines()
        start, more = part["end"], part["more"]
    notes: list[str] = []
    kept: list[str] = []
    for line in evenly(lines, MOST_LINES):
        try:
            kept.append(as_json(settings_without_private(parsed(line.encode()))))
        except (RunError, RecursionError) as error:
            notes = [f"of the metrics some lines are left out: {error}"]
    if len(lines) > MOST_LINES:
        notes.append(f"this file holds {MOST_LINES} of {len(lines)} lines of metrics")
    return "\n".join(kept), notes


def _trees(
    run: ViewedRun, step: int, overviews: list[dict[str, Any]], share: int, notes: list[str]
) -> list[str]:
    """The first trees of a step as JSON, until they have used up their share of characters."""
    used, kept = 0, list[str]()
    for number, tree in enumerate(overviews):
        try:
            record = _shown_to_others(run.tree(step, number))
            text = (
                f'{{"overview":{as_json(text_without_private(tree))},"record":{as_json(record)}}}'
            )
        except (RunError, RecursionError) as error:
            notes.append(f"tree {number} of step {step}: {error}")
            break  # a tree's number is its place in the list
        used += len(text)
        if kept and used > share:
            break
        kept.append(text)
    return kept


def _shown_to_others(record: dict[str, Any]) -> dict[str, Any]:
    """A tree without what is private; failures come from programs and are told like settings."""
    nodes: list[dict[str, Any]] = []
    for node in record["nodes"]:
        shown = text_without_private(node)
        if shown["text"] != node["text"]:
            shown["pieces"] = None
        for name in ("failure", "faults"):
            shown[name] = settings_without_private(node.get(name))
        nodes.append(shown)
    return {**record, "task": text_without_private(record["task"]), "nodes": nodes}


def told_apart(names: Sequence[str]) -> list[str]:
    """The same names, with a number where one was there before.

    Example:
      >>> told_apart(["a", "b", "a"])
      ['a', 'b', 'a (2)']
    """
    return [
        name if (before := names[:i].count(name)) == 0 else f"{name} ({before + 1})"
        for i, name in enumerate(names)
    ]


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


def _page(data: str) -> str:
    """``index.html`` with the data, as JSON, in it, and a policy that lets nothing else run."""
    script = "\n".join(page_file(name) for name in SCRIPTS)
    style = page_file(STYLE)
    policy = (
        "default-src 'none'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    )
    # Inside a script element only "</" and "<!" mean anything to a browser.
    payload = data.replace("<", "\\u003c")
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
