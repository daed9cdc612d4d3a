"""Where rollouts happen: what stays the same from one tree to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from spanwise.envs.base import Environment
from spanwise.rollout.failures import FailurePolicy
from spanwise.samplers.base import Sampler
from spanwise.tree import Node, Path


class Journal(ABC):
    """Remembers finished turns, so that a run that was killed does not sample them again."""

    @abstractmethod
    def lookup(self, step: int, task_id: str, path: Path) -> Node | None:
        """The turn at ``path``, if it was finished before."""

    @abstractmethod
    def write(self, step: int, task_id: str, node: Node) -> Node:
        """Remember a turn; returns it as ``lookup`` will."""


@dataclass(frozen=True, kw_only=True)
class RolloutContext:
    """Where rollouts happen: what stays the same from one tree to the next."""

    env: Environment
    sampler: Sampler
    tokenizer: Any
    seed: int
    """Of the run."""

    failures: FailurePolicy = FailurePolicy()
    """What becomes of calls that fail."""

    journal: Journal | None = None
    """Where finished turns are remembered; None: nowhere."""
