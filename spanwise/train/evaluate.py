"""Held-out questions, answered once at temperature 1 and once greedily."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spanwise.envs.base import Environment, Split, Task
from spanwise.errors import SpanwiseError
from spanwise.rollout.base import Rollout
from spanwise.rollout.chains import Chains
from spanwise.rollout.context import RolloutContext
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.runtime.event_loop import run_rollouts
from spanwise.samplers.base import Sampling
from spanwise.tree import Node


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model is measured."""

    split: Split = "test"
    num_tasks: int = 300
    """The first so many of the split."""

    every: int = 0
    """Also measure every so many steps during training; 0: before and after alone."""

    group_by: str = "hops"
    """A key of ``Task.info``; scores are also given for each of its values."""

    sampling: Sampling = field(default_factory=Sampling)
    """Of the sampled score; the greedy one is always at temperature 0."""

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
            raise SpanwiseError(f"the environment has no {self.split} questions to be measured on")
        return tasks


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of right answers: ``right`` of ``n``."""

    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n if self.n else 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement of a model."""

    sampled: dict[str, Score]
    """By group, and ``"all"``."""

    greedy: dict[str, Score]
    failed: int
    """Trajectories without a reward, counted as not right."""

    sampled_tokens: int

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            "exact_match": self.sampled["all"].share,
            "greedy": self.greedy["all"].share,
            "n": self.sampled["all"].n,
            "failed": self.failed,
            "by_group": {
                name: {
                    "exact_match": score.share,
                    "greedy": self.greedy[name].share,
                    "n": score.n,
                }
                for name, score in self.sampled.items()
                if name != "all"
            },
        }


def measure(
    context: RolloutContext, rollout: Rollout, evaluation: Evaluation, ranks: Ranks = ALONE
) -> Measured:
    """Answer the held-out tasks twice, sampled and greedily.

    Args:
      context: Where; its seed decides the draws, the same before and after training.
      rollout: For its length limits.
      evaluation: Which tasks, and how they are sampled.
      ranks: Among which the tasks are shared out; each gets the whole result.

    Raises:
      RunStopped: if too much fails, by ``context.failures``.
    """
    tasks = evaluation.tasks(context.env)
    sampled = run_rollouts(_answer(context, rollout, tasks, evaluation.sampling, ranks))
    certain = replace(evaluation.sampling, temperature=0)
    greedy = run_rollouts(_answer(context, rollout, tasks, certain, ranks))
    return Measured(
        sampled=_scores(tasks, sampled, evaluation.group_by),
        greedy=_scores(tasks, greedy, evaluation.group_by),
        failed=sum(node.reward is None for node in [*sampled.leaves, *greedy.leaves]),
        sampled_tokens=sampled.tokens + greedy.tokens,
    )


@dataclass
class _Answers:
    leaves: list[Node]
    tokens: int


async def _answer(
    context: RolloutContext,
    rollout: Rollout,
    tasks: Sequence[Task],
    sampling: Sampling,
    ranks: Ranks,
) -> _Answers:
    chain = Chains(
        num_chains=1,
        sampling=sampling,
        max_turn_tokens=rollout.max_turn_tokens,
        max_response_tokens=rollout.max_response_tokens,
    )
    trees = await ranks.map(lambda task: chain(context, task, step=0), tasks)
    context.failures.check(trees)
    tokens = sum(len(node.tokens) for tree in trees for node in tree.nodes)
    return _Answers(leaves=[tree.leaves()[0] for tree in trees], tokens=tokens)


def _scores(tasks: Sequence[Task], answers: _Answers, group_by: str) -> dict[str, Score]:
    right: dict[str, list[bool]] = defaultdict(list)
    for task, leaf in zip(tasks, answers.leaves, strict=True):
        right["all"].append(bool(leaf.success))
        if group_by in task.info:
            right[str(task.info[group_by])].append(bool(leaf.success))
    in_order = sorted(right, key=_numbers_by_size)
    return {k: Score(right=sum(right[k]), n=len(right[k])) for k in in_order}


def _numbers_by_size(name: str) -> tuple[bool, int, str]:
    """Orders 9 before 10, and both before words."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
