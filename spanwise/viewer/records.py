"""What a run folder says, as the page needs it: one line of ``trees/``, numbers, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from spanwise.run.folder import RunError

PER_TOKEN = ("values", "advantages", "ratio", "entropies")
"""Arrays that may stand beside a node's ``tokens``; the page shows those that are there."""

_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_HUGE = b"e000", b"0" * 300
"""Where a number may be too large for a browser, such as 1e999, once all digits are 0."""

DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading a record raises that is none of ours."""


def parsed(text: bytes) -> dict[str, Any]:
    """A JSON object; NaN, infinity and what is as large become None: no browser can read them.

    Raises:
      RunError: if it is damaged.
    """
    try:
        digits = text.translate(_DIGITS, b"+")
        if any(huge in digits for huge in _HUGE):
            value = json.loads(text, parse_constant=_none, parse_float=_finite, parse_int=_finite)
        else:
            value = json.loads(text, parse_constant=_none)
    except (ValueError, RecursionError) as error:
        raise RunError(f"this cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"this cannot be read: {type(value).__name__} where an object belongs")
    return value


def is_flat(value: Any, levels: int = 100) -> bool:
    """Whether a JSON value has at most so many levels.

    Example:
      >>> is_flat([{"a": 1}], levels=2), is_flat([{"a": [1]}], levels=2)
      (True, False)
    """
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(is_flat(one, levels - 1) for one in inner)


def as_json(value: Any) -> str:
    """JSON for a browser.

    Raises:
      RunError: if it has none: numbers that are not finite, or too many levels.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"this cannot be shown: {error}") from error


def shown_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose nodes have every array in ``PER_TOKEN``, None where none was recorded."""
    nodes = [{**dict.fromkeys(PER_TOKEN), **node} for node in record["nodes"]]
    return {"task": record["task"], "nodes": nodes}


def overview(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a tree in a list: its question, and the outcome of each leaf.

    Returns:
      Among others ``returns``, what each leaf's trajectory was paid (None: never scored), and
      ``successes``, whether it succeeded (None where the environment does not say).

    Raises:
      RunError: if the record is damaged.
    """
    try:
        return _overview(record)
    except DAMAGED as error:
        raise RunError(f"this cannot be read: {type(error).__name__}: {error}") from error


def _overview(record: Mapping[str, Any]) -> dict[str, Any]:
    nodes = record["nodes"]
    leaves = [node for node in nodes if node["stop"] not in ("prompt", "continue")]
    paid: dict[tuple[int, ...], float] = {}
    for node in nodes:
        path = tuple(node["path"])
        paid[path] = paid.get(path[:-1], 0.0) + (node["reward"] or 0.0)
    returns = (None if n["reward"] is None else paid[tuple(n["path"])] for n in leaves)
    return {
        "question": record["task"]["question"],
        "returns": [paid if paid is None or math.isfinite(paid) else None for paid in returns],
        "successes": [node["success"] for node in leaves],
        "largest_advantage": max(abs(node["advantage"] or 0.0) for node in nodes),
    }


def _none(_: str) -> None:
    """No value for NaN and infinity."""


def _finite(digits: str) -> float | int | None:
    """A number that a browser can hold, or None."""
    number = float(digits)
    if not math.isfinite(number):
        return None
    return int(digits) if digits.lstrip("-").isdigit() else number
