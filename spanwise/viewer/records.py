"""One line of ``trees/`` as the page needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spanwise.run.folder import RunError

PER_TOKEN = ("values", "advantages", "ratio", "entropies")
"""Arrays that may stand beside a node's ``tokens``; the page shows those that are there."""


def parsed(text: bytes) -> dict[str, Any]:
    """A JSON object; NaN and infinity, which a browser cannot read, become None.

    Raises:
      RunError: if it is damaged.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except ValueError as error:
        raise RunError(f"this cannot be read: {error}") from error


def shown_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose nodes have every array in ``PER_TOKEN``, None where none was recorded."""
    nodes = [{**dict.fromkeys(PER_TOKEN), **node} for node in record["nodes"]]
    return {"task": record["task"], "nodes": nodes}


def overview(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a tree in a list: its question, and the outcome of each leaf.

    Returns:
      Among others ``returns``, what each leaf's trajectory was paid (None: never scored), and
      ``successes``, whether it succeeded (None where the environment does not say).
    """
    nodes = record["nodes"]
    leaves = [node for node in nodes if node["stop"] not in ("prompt", "continue")]
    paid: dict[tuple[int, ...], float] = {}
    for node in nodes:
        path = tuple(node["path"])
        paid[path] = paid.get(path[:-1], 0.0) + (node["reward"] or 0.0)
    return {
        "question": record["task"]["question"],
        "returns": [None if n["reward"] is None else paid[tuple(n["path"])] for n in leaves],
        "successes": [node["success"] for node in leaves],
        "largest_advantage": max(abs(node["advantage"] or 0.0) for node in nodes),
    }
