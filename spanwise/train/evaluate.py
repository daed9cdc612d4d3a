"""Held-out tasks, played once as sampled and once greedily."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from spanwise.envs.base import Environment, Split, Task
from spanwise.errors import SpanwiseError
from spanwise.rollout.base import Rollout
from spanwise.rollout.chains import Chains
from spanwise.rollout.context import RolloutContext
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.runtime.event_loop import run_async
from spanwise.samplers.base import Sampling
from spanwise.train.metrics import outcome_means
from spanwise.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measurement of a model on held-out tasks."""

    split: Split = "test"
    """Split whose tasks are played."""

    num_tasks: int = 300
    """Number of tasks, from the beginning of the split."""

    every: int = 0
    """Steps from one measurement during training to the next; 0: before and after alone."""

    group_by: str = ""
    """Key of ``Task.info`` by whose values the scores are also given; empty: no groups."""

    sampling: Sampling = field(default_factory=Sampling)
    """Sampling of turns for the sampled scores; the greedy ones are at temperature 0."""

    def __post_init__(self) -> None:
        if self.num_tasks < 1 or self.every < 0:
            raise SpanwiseError(
                "evaluation needs num_tasks >= 1 and every >= 0, got "
                f"{self.num_tasks} and {self.every}"
            )

    def tasks(self, env: Environment) -> Sequence[Task]:
        """The tasks that are measured on.

        Raises:
          ValueError: if there are none.
        """
        tasks = env.tasks(self.split)[: self.num_tasks]
        if not tasks:
            raise SpanwiseError(f"the environment has no {self.split} tasks to be measured on")
        return tasks


def measure(
    context: RolloutContext, rollout: Rollout, evaluation: Evaluation, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Play the held-out tasks twice, sampled and greedily.
    The context's seed decides the draws, the same before and after training.

    Returns:
      As JSON values: ``score``, the mean return of the trajectories that were scored;
      ``success``, the share that succeeded, where the environment says so, and one that
      failed did not; ``env/KEY`` as in ``train.metrics``; all of them again as
      ``greedy_score`` and so on; ``n``, the number of tasks; ``failed``, how many
      trajectories of both kinds have no reward; and ``by_group`` the same, but for ``failed``,
      for each value of ``evaluation.group_by``.

    Raises:
      RunStopped: if too much fails, by ``context.failures``.
    """
    tasks = evaluation.tasks(context.env)
    certain = replace(evaluation.sampling, temperature=0)
    sampled = run_async(play(context, rollout, tasks, evaluation.sampling, ranks))
    greedy = run_async(play(context, rollout, tasks, certain, ranks))
    leaves = [tree.leaves()[0] for tree in [*sampled, *greedy]]
    knows_success = any(leaf.success is not None for leaf in leaves)

    def figures(numbers: Sequence[int]) -> dict[str, Any]:
        """The scores of some of the tasks."""
        scores: dict[str, Any] = {"n": len(numbers)}
        for prefix, trees in (("", sampled), ("greedy_", greedy)):
            of_kind = _figures([trees[number] for number in numbers], knows_success)
            scores |= {prefix + name: value for name, value in of_kind.items()}
        return scores

    groups: dict[str, list[int]] = defaultdict(list)
    for number, task in enumerate(tasks):
        if evaluation.group_by in task.info:
            groups[str(task.info[evaluation.group_by])].append(number)
    return {
        **figures(range(len(tasks))),
        "failed": sum(leaf.reward is None for leaf in leaves),
        "by_group": {name: figures(groups[name]) for name in sorted(groups, key=_numbers_by_size)},
    }


async def play(
    context: RolloutContext,
    rollout: Rollout,
    tasks: Sequence[Task],
    sampling: Sampling,
    ranks: Ranks,
) -> list[Tree]:
    """One trajectory of each task, within the limits of ``rollout``."""
    chain = Chains(
        num_chains=1,
        sampling=sampling,
        max_turn_tokens=rollout.max_turn_tokens,
        max_response_tokens=rollout.max_response_tokens,
    )
    trees = await ranks.map(lambda task: chain(context, task, step=0), tasks)
    context.check(trees)
    return trees


def _figures(trees: Sequence[Tree], knows_success: bool) -> dict[str, float]:
    leaves = [tree.leaves()[0] for tree in trees]
    returns = [tree.returns(leaf) for tree, leaf in zip(trees, leaves, strict=True)]
    scored = [paid for paid in returns if paid is not None]
    known = [leaf for leaf in leaves if leaf.success is not None or leaf.reward is None]
    scores = {"score": fmean(scored)} if scored else {}
    if knows_success and known:
        scores["success"] = fmean(bool(leaf.success) for leaf in known)
    return scores | outcome_means(node for tree in trees for node in tree.nodes[1:])


def _numbers_by_size(name: str) -> tuple[bool, int, str]:
    """Orders 9 before 10, and both before words."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
