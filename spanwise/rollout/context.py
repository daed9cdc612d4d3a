"""Where rollouts happen: what stays the same from one tree to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spanwise.envs.base import Environment
from spanwise.errors import one_line
from spanwise.rollout.failures import FailurePolicy
from spanwise.samplers.base import Sampler
from spanwise.tools.base import ToolError
from spanwise.tree import Failure, FailureKind, Node, Path, Tree


class Journal(ABC):
    """Remembers finished turns, so that a run that was killed does not sample them again."""

    @abstractmethod
    def lookup(self, step: int, task_id: str, path: Path, seen: str) -> Node | None:
        """The turn at ``path``, if it was finished before, of the same task and prompt.

        Args:
          step: Training step.
          task_id: Id of the task, which says where it stands and not what it asks.
          path: The node's place in the tree.
          seen: Digest of all that the turn was made from (see ``TreeBuilder``).
        """

    @abstractmethod
    def write(self, step: int, task_id: str, node: Node, seen: str) -> Node:
        """Remember a turn; returns it as ``lookup`` will."""


@dataclass(frozen=True, kw_only=True)
class RolloutContext:
    """Where rollouts happen: what stays the same from one tree to the next."""

    env: Environment
    sampler: Sampler
    tokenizer: Any
    seed: int
    """Seed of the run."""

    failures: FailurePolicy = FailurePolicy()
    """Treatment of calls that fail."""

    journal: Journal | None = None
    """Where finished turns are remembered; None: nowhere."""

    _raised: dict[str, Exception] = field(
        default_factory=dict[str, Exception], init=False, repr=False, compare=False
    )
    """Exceptions since the last check, by the messages of the failures that they became."""

    def failed(self, kind: FailureKind, error: Exception) -> Failure:
        """An exception as a failure, for the record; ``check`` may raise from it."""
        known = isinstance(error, ToolError)
        failure = error.failure() if known else Failure(kind=kind, message=one_line(error))
        self._raised.setdefault(failure.message, error)
        return failure

    def check(self, trees: Sequence[Tree]) -> None:
        """Refuse to go on from rollouts in which too much failed.

        Raises:
          RunStopped: by ``failures``, from the first exception of the commonest kind.
        """
        try:
            self.failures.check(trees, self._raised)
        finally:
            self._raised.clear()
