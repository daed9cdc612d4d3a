"""The draw of a step's tasks, and their rollouts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from spanwise.envs.base import Task
from spanwise.errors import SpanwiseError
from spanwise.rollout.context import RolloutContext
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.runtime.seeds import seed_of
from spanwise.train.config import TrainConfig
from spanwise.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The rollouts of one step."""

    tasks: list[Task]
    """The task of each of ``trees``."""

    trees: list[Tree]
    """The trees to train on."""

    all_trees: list[Tree]
    """All trees, with those left out because their branches were all paid alike."""


async def sample_step(
    context: RolloutContext,
    config: TrainConfig,
    pool: Sequence[Task],
    step: int,
    ranks: Ranks = ALONE,
) -> Sampled:
    """The trees of one step; with ``dynamic_sampling_rounds``, those whose returns vary."""
    drawn = draw_tasks(pool, config.prompts_per_step, config.seed, step)
    upcoming = chain(drawn, replacement_tasks(pool, drawn, config.seed, step))
    kept, all_trees = list[tuple[Task, Tree]](), list[Tree]()
    rounds = config.dynamic_sampling_rounds
    for _ in range(1 + rounds):
        tasks = list(islice(upcoming, config.prompts_per_step - len(kept)))
        trees = await rollouts(context, config, tasks, step, ranks)
        pairs = zip(tasks, trees, strict=True)
        kept += [pair for pair in pairs if not rounds or has_reward_variance(pair[1])]
        all_trees += trees
    return Sampled(
        tasks=[task for task, _ in kept], trees=[tree for _, tree in kept], all_trees=all_trees
    )


def has_reward_variance(tree: Tree) -> bool:
    """True if some branches were paid more than others, without which no group baseline learns."""
    return len({tree.returns(leaf) for leaf in tree.leaves()} - {None}) > 1


def draw_tasks(pool: Sequence[Task], count: int, seed: int, step: int) -> list[Task]:
    """The tasks of one step: passes through the pool, each in an order of its own.

    No task stands twice in a step: what is left of a pass that is too little for a whole
    step is not drawn in that pass.

    Raises:
      ValueError: if the pool has fewer tasks than a step, or two of the step have one id.

    Example:
      >>> pool = [Task(id=str(i), question="?", answers=("!",)) for i in range(4)]
      >>> seen = [t.id for step in (1, 2) for t in draw_tasks(pool, 2, 0, step)]
      >>> sorted(seen)
      ['0', '1', '2', '3']
    """
    if len(pool) < count:
        raise SpanwiseError(
            f"a step needs {count} prompts and there are {len(pool)} training tasks"
        )
    epoch, index = divmod(step - 1, len(pool) // count)
    order = list(range(len(pool)))
    random.Random(seed_of(seed, epoch, "order")).shuffle(order)
    drawn = [pool[i] for i in order[index * count : (index + 1) * count]]
    [(first, times)] = Counter(task.id for task in drawn).most_common(1)
    if times > 1:
        raise SpanwiseError(
            f"{times} training tasks have the id {first!r}: seeds and the journal tell tasks apart "
            "by it, give each its own"
        )
    return drawn


def replacement_tasks(
    pool: Sequence[Task], drawn: Sequence[Task], seed: int, step: int
) -> Iterator[Task]:
    """The rest of the pool in an order of the step's own, each task once.

    Which come next depends on the step alone, not on how many were used before it.
    """
    order = list(pool)
    random.Random(seed_of(seed, step, "refill")).shuffle(order)
    seen = {task.id for task in drawn}
    return (task for task in order if task.id not in seen)


async def rollouts(
    context: RolloutContext,
    config: TrainConfig,
    tasks: Sequence[Task],
    step: int,
    ranks: Ranks = ALONE,
) -> list[Tree]:
    """One tree for each task, all grown at the same time; each rank grows its share.

    Raises:
      RunStopped: if a failure is one to stop at, or too many branches failed.
    """
    trees = await ranks.map(lambda task: config.rollout(context, task, step=step), tasks)
    context.check(trees)
    return trees
