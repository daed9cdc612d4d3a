"""Metrics of a step's trees; every metric is in docs/metrics.md."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from spanwise.batch import Batch
from spanwise.rollout.failures import failures_in
from spanwise.tools.base import abandoned_threads
from spanwise.tree import Branch, Node, Tree

Metric = Callable[[Sequence[Tree], Batch | None], Mapping[str, float]]
"""A metric of your own: all trees of a step, and the batch of those that are trained on (None:
there are none), to numbers by name."""


def tree_metrics(trees: Sequence[Tree], batch: Batch | None) -> dict[str, Any]:
    """Metrics of all trees of a step, and of the batch of those that are trained on, if any.

    ``score`` is the mean return of the scored branches, ``success`` the share that succeeded
    of those of which the environment says it. Tree search visits undecided places more often
    than the policy would, so ``unforked/score`` and ``unforked/success`` are of the branches
    that no expansion touched: these estimate the policy itself. What nothing is known of is
    left out. For ``env/KEY`` see ``outcome_means``.

    ``failures`` and ``failures/KIND`` count what went wrong outside the model, whatever
    became of it; ``abandoned_threads`` the threads that hang past their deadlines at this moment.

    ``unique_token_fraction`` is the share of all branches' tokens that is left if each shared one
    counts once; ``row_tokens`` counts the rows to train on, prompts included.
    ``batch`` holds the trees that are trained on; None if there are none.
    """
    branches = [b for tree in trees for b in tree.branches()]
    returns = [tree.returns(leaf) for tree in trees for leaf in tree.leaves()]
    scored = [(b, paid) for b, paid in zip(branches, returns, strict=True) if paid is not None]
    unforked = [(b, paid) for b, paid in scored if all(n.expansion is None for n in b.nodes)]
    turns = [n for tree in trees for n in tree.nodes[1:] if n.tokens]
    unique = sum(tree.unique_tokens for tree in trees)
    total = sum(tree.total_tokens for tree in trees)
    sampled = sum(len(n.tokens) for n in turns)
    return {
        **_scores(scored),
        **_scores(unforked, "unforked/"),
        **outcome_means(turns),
        "turns": _mean([len(b.turns) for b, _ in scored]),
        "turn_entropy": _mean([n.entropy for n in turns]),
        "turn_tokens": sampled / max(len(turns), 1),
        "branches": len(branches),
        "excluded": len(branches) - len(scored),
        **_stops(branches),
        **_failures(trees),
        "sampled_tokens": sampled,
        "trained_tokens": 0 if batch is None else int(batch.loss_mask.sum()),
        "row_tokens": 0 if batch is None else int(batch.lengths[batch.trained].sum()),
        "unique_tokens": unique,
        "unique_token_fraction": unique / total,
    }


def own_metrics(
    metrics: Sequence[Metric], trees: Sequence[Tree], batch: Batch | None
) -> dict[str, float]:
    """The metrics of a user's own functions, each as ``own/NAME``."""
    return {
        f"own/{name}": float(value)
        for metric in metrics
        for name, value in metric(trees, batch).items()
    }


def outcome_means(turns: Iterable[Node]) -> dict[str, float]:
    """Means of the environment's own numbers, each as ``env/KEY``.

    A mean is over the turns whose outcome has the key, each turn once: of what is only said
    at the end it is a mean over trajectories. True counts 1 and False 0.

    Example:
      >>> turn = Node(path=(0,), stop="end", reward=1.0, outcome={"moves": 3, "board": "xo"})
      >>> outcome_means([turn])
      {'env/moves': 3.0}
    """
    found: dict[str, list[float]] = defaultdict(list)
    for node in turns:
        for key, value in node.outcome.items():
            if isinstance(value, int | float):
                found[f"env/{key}"].append(value)
    return {name: fmean(found[name]) for name in sorted(found)}


def _scores(scored: Sequence[tuple[Branch, float]], prefix: str = "") -> dict[str, float]:
    known = [b.leaf.success for b, _ in scored if b.leaf.success is not None]
    values = {f"{prefix}score": [paid for _, paid in scored], f"{prefix}success": known}
    return {name: fmean(found) for name, found in values.items() if found}


def _stops(branches: Sequence[Branch]) -> dict[str, float]:
    """Share of branches by why they ended."""
    kinds = ("end", "malformed", "length", "budget", "failure")
    counts = {kind: sum(b.leaf.stop == kind for b in branches) for kind in kinds}
    return {f"stop/{kind}": count / len(branches) for kind, count in counts.items()}


def _failures(trees: Sequence[Tree]) -> dict[str, int]:
    """Failures in all and of each kind that occurred, also those that were got over."""
    failures = list(failures_in(trees))
    kinds = Counter(failure.kind for failure in failures)
    return {
        "failures": len(failures),
        "retries": sum(failure.then == "retried" for failure in failures),
        "abandoned_threads": abandoned_threads(),
        **{f"failures/{kind}": count for kind, count in sorted(kinds.items())},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
