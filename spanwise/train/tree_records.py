"""Records of a step's trees for the run folder: the credit of each node and token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.envs.base import Task
from spanwise.learn.learner import Learner
from spanwise.losses import span_ratio
from spanwise.run.folder import tree_record
from spanwise.tree import Tree


def token_arrays(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """The figures of each token of a step for the run folder, ``[N, T]`` each.

    ``ratio`` is the span's, after the update against before it: how far the step moved it.
    """
    assert batch.advantages is not None
    arrays = {"advantages": batch.advantages}
    if batch.values is not None:
        arrays["values"] = batch.values
    if batch.token_entropies is not None:
        arrays["entropies"] = batch.token_entropies
    after, spans = learner.rescore(batch).old_logprobs, batch.ratio_spans
    assert after is not None and batch.old_logprobs is not None and spans is not None
    arrays["ratio"] = span_ratio(after, batch.old_logprobs, spans)
    return arrays


def records(
    trees: Sequence[Tree],
    tasks: Sequence[Task],
    batch: Batch,
    arrays: Mapping[str, Tensor],
    values: Tensor | None,
) -> list[dict[str, Any]]:
    """The trees of a step with the credit of each node and token, for the run folder."""
    at = batch.nodes[batch.mask]
    given = arrays["advantages"][batch.mask].float()
    sums = torch.zeros(len(batch.parents)).index_add(0, at, given)
    counts = torch.bincount(at, minlength=len(batch.parents)).clamp(min=1)
    per_node = (sums / counts).tolist()
    per_node_values = None if values is None else values.tolist()
    per_token = by_node(batch, arrays)
    lines: list[dict[str, Any]] = []
    first = 0
    for tree, task in zip(trees, tasks, strict=True):
        nodes = slice(first, first + len(tree.nodes))
        first += len(tree.nodes)
        lines.append(
            tree_record(
                tree,
                {"question": task.question, "answers": task.answers, "info": dict(task.info)},
                advantages=per_node[nodes],
                values=None if per_node_values is None else per_node_values[nodes],
                tokens=per_token[nodes],
            )
        )
    return lines


def by_node(batch: Batch, arrays: Mapping[str, Tensor]) -> list[dict[str, list[float]]]:
    """The figures of each node's tokens, from the first row that holds it."""
    found: list[dict[str, list[float]]] = [{} for _ in batch.parents]
    for row, nodes in enumerate(batch.nodes):
        for node in nodes[nodes >= 0].unique().tolist():
            if not found[node]:
                here = nodes == node
                found[node] = {name: of[row, here].tolist() for name, of in arrays.items()}
    return found
