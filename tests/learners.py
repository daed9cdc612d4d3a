"""Learners over small models, and one update of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from spanwise.batch import Batch
from spanwise.credit import Advantage, GroupAdvantage
from spanwise.learn.learner import Learner
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.tree import Tree

PLAIN = GroupAdvantage()


def new_learner(
    policy: Any,
    objective: Objective = Objective(),
    update: Update = Update(),
    *,
    advantage: Advantage = PLAIN,
    **parts: Any,
) -> Learner:
    return Learner(policy, advantage=advantage, objective=objective, update=update, **parts)


def scored(
    learner: Learner, trees: Sequence[Tree], advantages: torch.Tensor | None = None
) -> Batch:
    """The trees as a batch, with this credit or the learner's, in the precision of the policy."""
    batch = learner.score(trees)
    assert batch is not None and batch.advantages is not None
    credit = batch.advantages if advantages is None else advantages
    return replace(batch, advantages=credit.to(next(learner.model.parameters()).dtype))


def trained(
    learner: Learner,
    trees: Sequence[Tree],
    advantages: torch.Tensor | None = None,
    *,
    step: int = 1,
) -> dict[str, float]:
    """The metrics of one update."""
    return learner.update(scored(learner, trees, advantages), step=step)
