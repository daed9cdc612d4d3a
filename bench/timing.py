"""Times of several functions side by side."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


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


def arguments(description: str | None, *, gpu: bool = False) -> argparse.Namespace:
    """The options that all timings share, once the threads are set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-peer", action="store_true", help="leave out verl")
    parser.add_argument("--rounds", type=int, default=15)
    if gpu:
        parser.add_argument("--gpu", action="store_true", help="measure on the GPU instead")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found
