"""Tree search over turns: fork where the model was undecided.

As in AT²PO (arXiv 2601.04767), the trajectories of a prompt grow in rounds. Each round
picks the turns that the model was least sure of and samples each of them anew, and on
to the end of the trajectory.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from spanwise.envs.base import Task
from spanwise.errors import SpanwiseError
from spanwise.rollout.base import Rollout
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.tree_builder import TreeBuilder
from spanwise.runtime.seeds import seed_of
from spanwise.tree import Expansion, Node, Path, Tree

Ranked = list[tuple[Path, float]]
"""Nodes to sample anew with the score of each, best first."""


@dataclass(frozen=True, kw_only=True)
class TreeSearch(Rollout):
    """``num_chains`` trajectories, then ``num_rounds`` rounds of ``num_expansions`` forks.

    The tree has exactly ``num_chains + num_rounds * num_expansions`` leaves
    (``M + L K`` in the paper's letters). With no rounds it is ``Chains``.
    """

    num_chains: int = 10
    """``M``: trajectories sampled from the prompt before any fork."""

    num_rounds: int = 2
    """``L``: rounds of forking."""

    num_expansions: int = 6
    """``K``: forks in each round."""

    sibling_penalty: float = 0.05
    """``α``, taken off the entropy in nats for each sibling that a turn already has."""

    choose: Literal["entropy", "random"] = "entropy"
    """Way to choose the turns to fork; ``random``, the baseline, draws from all that went on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chains < 1 or self.num_rounds < 0 or self.num_expansions < 0:
            raise SpanwiseError(
                "tree search needs num_chains >= 1, num_rounds >= 0 and num_expansions >= 0, got "
                f"{self.num_chains}, {self.num_rounds} and {self.num_expansions}"
            )

    @property
    def num_leaves(self) -> int:
        return self.num_chains + self.num_rounds * self.num_expansions

    async def __call__(self, context: RolloutContext, task: Task, *, step: int) -> Tree:
        async with TreeBuilder(self, context, task, step) as builder:
            await builder.chains([((i,), None) for i in range(self.num_chains)])
            for number in range(1, self.num_rounds + 1):
                seed = seed_of(context.seed, step, task.id, "choose", number)
                ranked = self.rank(list(builder.nodes.values()), seed)
                starts = _siblings(builder, cycle(ranked, self.num_expansions), number)
                await builder.chains(starts)
        return builder.freeze()

    def rank(self, nodes: Sequence[Node], seed: int) -> Ranked:
        """The turns that may be sampled anew, best first; the root is none (see ``by_entropy``)."""
        if self.choose == "entropy":
            return by_entropy(nodes, self.sibling_penalty)
        candidates = sorted(n.path for n in nodes if n.stop == "continue")
        random.Random(seed).shuffle(candidates)
        return [(path, 0.0) for path in candidates]


def by_entropy(nodes: Sequence[Node], sibling_penalty: float) -> Ranked:
    """Rank the turns that called a tool by ``H(n) - α b(n)``, highest first.

    ``b(n)`` is the number of siblings of ``n``. Ties go to the smaller path.

    The root is no turn and no candidate; it is forked as a last resort (see ``cycle``). To the
    official code it is one, with ``H = 0`` and the penalty for all its children but one: no
    better than any first turn. It thus matters only where fewer than ``K`` turns called a tool
    (or one has as many siblings as there are first turns). The official code then samples one
    new first turn before it goes round again, and here the best turn is sampled once more.

    Example:
      >>> def call(*path, logprob):
      ...     return Node(path=path, tokens=(1,), engine_logprobs=(logprob,), stop="continue")
      >>> by_entropy([call(0, logprob=-0.5), call(1, logprob=-0.5), call(0, 0, logprob=-0.48)],
      ...            sibling_penalty=0.05)
      [((0, 0), 0.48), ((0,), 0.45), ((1,), 0.45)]
    """
    children = Counter(n.path[:-1] for n in nodes if n.path)
    scored = [
        (n.path, n.entropy - sibling_penalty * (children[n.path[:-1]] - 1))
        for n in nodes
        if n.stop == "continue"
    ]
    return sorted(scored, key=lambda item: (-item[1], item[0]))


def cycle(ranked: Ranked, count: int) -> Ranked:
    """The first ``count``, going round again if there are fewer; the root if there are none.

    Example:
      >>> cycle([((0,), 0.5), ((1,), 0.2)], 3)
      [((0,), 0.5), ((1,), 0.2), ((0,), 0.5)]
      >>> cycle([], 2)
      [((), 0.0), ((), 0.0)]
    """
    return list(islice(itertools.cycle(ranked or [((), 0.0)]), count))


def _siblings(builder: TreeBuilder, chosen: Ranked, number: int) -> list[tuple[Path, Expansion]]:
    """A fresh path beside each chosen node (below it, for the root)."""
    children = Counter(path[:-1] for path in builder.nodes if path)
    starts: list[tuple[Path, Expansion]] = []
    for path, score in chosen:
        parent = path[:-1]
        expansion = Expansion(round=number, of=path, score=score)
        starts.append(((*parent, children[parent]), expansion))
        children[parent] += 1
    return starts
