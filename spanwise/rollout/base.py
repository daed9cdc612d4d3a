"""The settings of a rollout: how the trajectories of one prompt are sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from spanwise.envs.base import Task
from spanwise.errors import SpanwiseError
from spanwise.rollout.context import RolloutContext
from spanwise.samplers.base import Sampling
from spanwise.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Rollout(ABC):
    """How the trajectories of one prompt are sampled."""

    sampling: Sampling = Sampling()
    max_turn_tokens: int = 64
    """Limit of one turn of the model."""

    max_response_tokens: int = 256
    """Limit of a whole trajectory after the prompt, observations included."""

    def __post_init__(self) -> None:
        if self.max_turn_tokens < 1 or self.max_response_tokens < 1:
            raise SpanwiseError(
                "rollout.max_turn_tokens and max_response_tokens must be at least 1, got "
                f"{self.max_turn_tokens} and {self.max_response_tokens}"
            )

    @property
    def num_leaves(self) -> int | None:
        """Trajectories of each prompt; None where that is not known beforehand."""
        return None

    @abstractmethod
    async def __call__(self, context: RolloutContext, task: Task, *, step: int) -> Tree:
        """Sample one tree. The same context, task and step give the same tree."""
