"""Independent trajectories of one prompt."""

from __future__ import annotations

from dataclasses import dataclass

from spanwise.envs.base import Task
from spanwise.rollout.base import Growth, Rollout, Site
from spanwise.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Chains(Rollout):
    """A tree that forks at the prompt alone, as GRPO, PPO and GSPO sample."""

    num_chains: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, got {self.num_chains}")

    async def __call__(self, site: Site, task: Task, *, step: int) -> Tree:
        growth = Growth(self, site, task, step)
        await growth.chains([((i,), None) for i in range(self.num_chains)])
        return growth.freeze()
