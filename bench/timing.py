"""Times of several functions side by side, and the results file they are kept in."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.machine import machine

RESULTS = Path(__file__).parent / "results"


def alternated_s(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds a call of each function, one figure a round; all take turns in every round.

    What disturbs the machine for a while then falls on all of them alike. ``calls`` calls
    are timed together, for functions that take less than the clock can tell.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[name].append((time.perf_counter() - start) / calls)
    return times


def speed_row(
    case: str, peer: str, ours_s: list[float], peer_s: list[float], note: str = ""
) -> dict[str, Any]:
    """One line of the results: medians, and how many times as fast as the peer ours is."""
    ours, theirs = statistics.median(ours_s), statistics.median(peer_s)
    print(f"{case:44s} {1e3 * ours:10.3f} ms   {peer:34s} {1e3 * theirs:10.3f} ms   "
          f"x {theirs / ours:.4g}  {note}", flush=True)  # fmt: skip
    return {
        "case": case,
        "peer": peer,
        "ours_s": float(f"{ours:.4g}"),
        "peer_s": float(f"{theirs:.4g}"),
        "ratio": float(f"{theirs / ours:.4g}"),
        "spread": {
            "ours_s": [float(f"{x:.4g}") for x in (min(ours_s), max(ours_s))],
            "peer_s": [float(f"{x:.4g}") for x in (min(peer_s), max(peer_s))],
        },
        "note": note,
    }


def arguments(description: str | None) -> argparse.Namespace:
    """The options that all timings share, once the threads are set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-peer", action="store_true", help="leave out verl")
    parser.add_argument("--rounds", type=int, default=15)
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Write ``bench/results/<name>.json``."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    result = {
        "name": name,
        "commit": commit or "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
