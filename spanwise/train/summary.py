"""The summary of a run at its end, for ``summary.json``."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spanwise.train.state import Run

LAST_STEPS = 5
"""The explained variance of a run is the mean over so many of its last steps."""


def summary(run: Run, after: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of ``summary.json``."""
    state, metrics = run.state, run.log.read_metrics()
    return {
        "recipe": run.recipe,
        "seed": run.config.seed,
        "before": state.before,
        "after": after,
        "train_seconds": round(state.train_seconds, 1),
        "sampled_tokens": state.sampled_tokens,
        "trained_tokens": state.trained_tokens,
        "peak_memory_mb": peak_memory_mb(),
        "failures": failure_summary(metrics),
        **packing_summary(metrics, epochs=run.config.update.epochs),
        **critic_summary(metrics),
    }


def critic_summary(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The share of its targets' variance that the critic explained; nothing without one."""
    explained = {False: [], True: []}
    for line in metrics:
        if "explained_variance" in line:
            explained["critic_batch" in line].append(line["explained_variance"])
    newest = explained[False][-LAST_STEPS:]
    if not newest:
        return {}
    return {
        "explained_variance": sum(newest) / len(newest),
        "pretraining_explained_variance": explained[True],
    }


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def failure_summary(metrics: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Failures of a whole run by kind, and retries, from the metrics of its steps.

    Example:
      >>> failure_summary([{"failures/tool_error": 2, "retries": 1}, {"retries": 0}])
      {'retries': 1, 'tool_error': 2}
    """
    totals: Counter[str] = Counter()
    for line in metrics:
        for name, value in line.items():
            if name == "retries" or name.startswith("failures/"):
                totals[name.removeprefix("failures/")] += value
    return dict(sorted(totals.items()))


def packing_summary(metrics: Sequence[Mapping[str, Any]], *, epochs: int) -> dict[str, int]:
    """Tokens of the rows of all updates of a run, and how many of them were computed.

    Returns:
      ``row_tokens`` and ``computed_tokens``; rows that share nothing and are padded to the
      longest have more computed than there are.

    Example:
      >>> packing_summary([{"row_tokens": 100, "computed_to_total": 0.25}, {"row_tokens": 50}],
      ...                 epochs=2)
      {'row_tokens': 200, 'computed_tokens': 50}
    """
    updates = [line for line in metrics if "computed_to_total" in line]
    computed = sum(line["row_tokens"] * line["computed_to_total"] for line in updates)
    return {
        "row_tokens": epochs * sum(line["row_tokens"] for line in updates),
        "computed_tokens": round(epochs * computed),
    }
