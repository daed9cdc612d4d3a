"""One line of ``trees/`` as the page needs it, however damaged or new the line is.

The page may rely on what comes out of here: every node has every field, arrays that
stand beside the tokens are as long as the tokens, and every node but the root has its
parent. What cannot be kept is left out and said in a note.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from spanwise.errors import SpanwiseError

PER_TOKEN = (
    "engine_logprobs",
    "sampling_logprobs",
    "values",
    "advantages",
    "old_logprobs",
    "ratio",
    "entropies",
    "pieces",
)
"""Arrays of a node that stand beside its ``tokens``; the page shows those that are there."""

STOPS = ("prompt", "continue", "end", "malformed", "length", "budget", "failure")


class DamagedLine(SpanwiseError):
    """A line is no record of a tree."""


def parsed_line(line: bytes) -> dict[str, Any]:
    """The object on a line; NaN and infinity become None.

    Raises:
      DamagedLine: if there is none.
    """
    try:
        value = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise DamagedLine(str(error)) from error
    if not isinstance(value, dict):
        raise DamagedLine("no object")
    return value


def readable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The task and nodes that can be shown, and ``notes`` on what cannot.

    Raises:
      DamagedLine: if not even a root is there.

    Example:
      >>> found = readable_record({"nodes": [{"path": [], "stop": "prompt"}, {"path": [0, 1]}]})
      >>> [node["path"] for node in found["nodes"]], found["notes"]
      ([[]], ['1 of 2 turns cannot be shown: they have no path or no parent'])
    """
    entries = record.get("nodes")
    if not isinstance(entries, list):
        raise DamagedLine("no nodes")
    notes: list[str] = []
    nodes: list[dict[str, Any]] = []
    known: set[tuple[int, ...]] = set()
    for entry in sorted((e for e in entries if _has_path(e)), key=lambda e: e["path"]):
        path = tuple(entry["path"])
        if path not in known and (not path or path[:-1] in known):
            known.add(path)
            nodes.append(_readable_node(entry, notes))
    if () not in known:
        raise DamagedLine("no root")
    if len(nodes) < len(entries):
        notes.append(
            f"{len(entries) - len(nodes)} of {len(entries)} turns cannot be shown: "
            "they have no path or no parent"
        )
    return {"task": _readable_task(record.get("task")), "nodes": nodes, "notes": notes}


def overview(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a list of trees says of one: question, turns and the outcome of each leaf."""
    nodes = record["nodes"]
    leaves = [node for node in nodes if node["stop"] not in ("prompt", "continue")]
    advantages = [n["advantage"] for n in nodes if n["advantage"] is not None]
    return {
        "question": record["task"]["question"],
        "turns": len(nodes) - 1,
        "rewards": [leaf["reward"] for leaf in leaves],
        "failures": sum(node["failure"] is not None for node in nodes),
        "expansions": sum(node["expansion"] is not None for node in nodes),
        "largest_advantage": max(map(abs, advantages), default=0.0),
    }


def _has_path(entry: Any) -> bool:
    path = entry.get("path") if isinstance(entry, dict) else None
    return isinstance(path, list) and all(isinstance(n, int) and n >= 0 for n in path)


def _readable_task(task: Any) -> dict[str, Any]:
    task = task if isinstance(task, dict) else {}
    answers = task.get("answers")
    answers = answers if isinstance(answers, list) else []
    return {
        "id": _text(task.get("id")),
        "question": _text(task.get("question")),
        "answers": [_text(a) for a in answers],
    }


def _readable_node(entry: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    tokens = _integers(entry.get("tokens"))
    stop = entry.get("stop")
    node: dict[str, Any] = {
        "path": list(entry["path"]),
        "tokens": tokens,
        "observation": _integers(entry.get("observation")),
        "observation_pieces": None,
        "stop": stop if stop in STOPS else "failure",
        "text": _text(entry.get("text")),
        "observation_text": _text(entry.get("observation_text")),
        "label": _text(entry.get("label")),
        "success": entry["success"] if isinstance(entry.get("success"), bool) else None,
        "failure": _failure(entry.get("failure")),
        "faults": _faults(entry.get("faults")),
        "expansion": _expansion(entry.get("expansion")),
        "outcome": entry["outcome"] if isinstance(entry.get("outcome"), dict) else {},
    }
    for name in ("reward", "entropy", "advantage", "value"):
        node[name] = _number(entry.get(name))
    for name in PER_TOKEN:
        array = entry.get(name)
        node[name] = None
        if array is None:
            continue
        if not isinstance(array, list) or len(array) != len(tokens):
            notes.append(f"turn {_label(entry['path'])}: {name} do not match its tokens")
        elif name == "pieces":
            node[name] = [_text(piece) for piece in array]
        else:
            node[name] = [_number(number) for number in array]
    pieces = entry.get("observation_pieces")
    if isinstance(pieces, list) and len(pieces) == len(node["observation"]):
        node["observation_pieces"] = [_text(piece) for piece in pieces]
    return node


def _failure(failure: Any) -> dict[str, str] | None:
    return next(iter(_faults([failure])), None)


def _faults(faults: Any) -> list[dict[str, str]]:
    entries: list[Any] = faults if isinstance(faults, list) else []
    return [
        {name: _text(fault.get(name)) for name in ("kind", "message", "then")}
        for fault in entries
        if isinstance(fault, dict)
    ]


def _expansion(expansion: Any) -> dict[str, Any] | None:
    if not isinstance(expansion, dict):
        return None
    return {
        "round": _number(expansion.get("round")),
        "of": _integers(expansion.get("of")),
        "score": _number(expansion.get("score")),
    }


def _label(path: list[int]) -> str:
    return ".".join(map(str, path)) or "prompt"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _integers(value: Any) -> list[int]:
    return [n for n in value if isinstance(n, int)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None
