"""Independent trajectories of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from spanwise.envs.base import Task
from spanwise.errors import SpanwiseError
from spanwise.rollout.base import Rollout
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.tree_builder import TreeBuilder
from spanwise.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Chains(Rollout):
    """A tree that forks at the prompt alone, as GRPO, PPO and GSPO sample."""

    num_chains: int = 8
    """Trajectories sampled from each prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chains < 1:
            raise SpanwiseError(f"num_chains must be at least 1, got {self.num_chains}")

    @property
    def num_leaves(self) -> int:
        return self.num_chains

    async def __call__(self, context: RolloutContext, task: Task, *, step: int) -> Tree:
        async with TreeBuilder(self, context, task, step) as builder:
            await builder.chains([((i,), None) for i in range(self.num_chains)])
        return builder.freeze()
