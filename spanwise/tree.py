"""The record of what happened: a tree of turns, from the prompt to the leaves.

A ``Node`` is one turn and holds only the tokens it adds: the ``tokens`` that the
model sampled, and the ``observation`` that the environment put after them. The root
is the node without model tokens whose observation is the prompt. Siblings are
different turns after the same observation, so a shared observation is stored (and
its tool is called) once.

A ``Branch`` is the path from the root to one leaf: one finished trajectory, one row
of the training batch. Everything after the rollout is a function of the tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

Path = tuple[int, ...]
"""Names a node by the child numbers that lead to it from the root, ``()``."""

Stop = Literal["prompt", "continue", "end", "malformed", "length", "budget", "failure"]
"""Why a turn ended. ``continue`` alone is followed by another turn.

``prompt``: the root. ``continue``: the environment answered with an observation. ``end``:
the model or the environment ended the trajectory, with a final answer or a last move.
``malformed``: the turn could not be read. ``length``: cut by the token limit. ``budget``:
no turn or tool call was left. ``failure``: see ``Node.failure``.
"""


FailureKind = Literal[
    "tool_timeout", "tool_error", "tool_crash", "overlong_output",
    "malformed_call", "length_limit", "budget_spent",
    "reward_timeout", "reward_error", "reward_nan", "replay_diverged",
    "engine_timeout", "engine_error",
]  # fmt: skip
"""What can go wrong.

Most environments score a malformed call, a turn cut by the length limit and a spent
budget: these are then a ``Stop`` with a reward. The kinds of these names are for
environments that rather leave the branch out.
"""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something outside the model went wrong."""

    kind: FailureKind
    message: str
    """One line for a person."""

    then: Literal["excluded", "retried", "shown", "cut"] = "excluded"
    """What was done about it: the branch has no reward; the call was made again; the model
    was told and went on; too long an output was cut and used."""


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """Why tree search sampled this node: it is a fresh sibling of ``of``."""

    round: int
    """Round of expansion, from 1."""

    of: Path
    """The node that was chosen; ``()`` if the search had to branch at the root."""

    score: float
    """Score of the choice: entropy minus the penalty for siblings."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One turn: what the model sampled and what the environment answered.

    Example:
      >>> turn = Node(path=(0,), tokens=(7, 8), engine_logprobs=(-1.0, -2.0),
      ...             observation=(9,), stop="continue")
      >>> turn.entropy
      1.5
    """

    path: Path
    tokens: tuple[int, ...] = ()
    """Tokens that the model sampled."""

    engine_logprobs: tuple[float, ...] = ()
    """Log-probs of ``tokens`` under the model at temperature 1, as the engine reported."""

    sampling_logprobs: tuple[float, ...] = ()
    """Log-probs of ``tokens`` under the distribution they were drawn from; by default, those of
    the engine."""

    observation: tuple[int, ...] = ()
    """Tokens that the environment put after the turn; at the root, the prompt."""

    truncated: bool = False
    """Whether the limit of a turn cut it."""

    stop: Stop
    reward: float | None = None
    """Reward paid for this turn. None at a leaf: the trajectory was never scored."""

    success: bool | None = None
    """Whether the trajectory that ends here succeeded, where the environment says so."""

    failure: Failure | None = None
    """Why the trajectory that ends here has no reward."""

    faults: tuple[Failure, ...] = ()
    """Failures before that and those that were got over, in the order of their occurrence."""

    expansion: Expansion | None = None
    text: str = ""
    """``tokens``, decoded."""

    observation_text: str = ""
    label: str = ""
    """One short line that stands for the turn in tables and pages; empty: its text."""

    outcome: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The environment's own JSON values for the turn."""

    def __post_init__(self) -> None:
        if not self.sampling_logprobs:
            object.__setattr__(self, "sampling_logprobs", self.engine_logprobs)
        if not len(self.tokens) == len(self.engine_logprobs) == len(self.sampling_logprobs):
            raise ValueError(
                f"node {self.path}: {len(self.tokens)} tokens, {len(self.engine_logprobs)} "
                f"engine_logprobs and {len(self.sampling_logprobs)} sampling_logprobs; "
                "all three must match"
            )

    @property
    def is_leaf(self) -> bool:
        return self.stop not in ("prompt", "continue")

    @property
    def entropy(self) -> float:
        """``H(n)``: mean negative log-prob of the turn's tokens, in nats; 0 if none.

        One sample's estimate of the entropy per token (AT²PO, arXiv 2601.04767) of the
        distribution that they were drawn from.
        """
        logprobs = self.sampling_logprobs
        return -sum(logprobs) / len(logprobs) if logprobs else 0.0


@dataclass(frozen=True)
class Branch:
    """The nodes from the root to one leaf: one trajectory, one training sample."""

    nodes: tuple[Node, ...]

    @property
    def leaf(self) -> Node:
        return self.nodes[-1]

    @property
    def turns(self) -> tuple[Node, ...]:
        """The nodes with model tokens: all but the root."""
        return self.nodes[1:]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt, turns and observations in order."""
        return tuple(t for n in self.nodes for t in (*n.tokens, *n.observation))

    @property
    def mask(self) -> tuple[bool, ...]:
        """True on the tokens that the model sampled."""
        return tuple(
            m for n in self.nodes for m in [True] * len(n.tokens) + [False] * len(n.observation)
        )


@dataclass(frozen=True, kw_only=True)
class Tree:
    """All trajectories of one prompt.

    Args:
      task_id: The task whose prompt this is.
      nodes: Every node once, the root first, sorted by path.

    Raises:
      ValueError: if a node stands twice, has no parent, or follows a leaf.

    Example:
      >>> def turn(*path, stop, reward=None):
      ...     return Node(path=path, tokens=(1,), engine_logprobs=(-1.0,), stop=stop,
      ...                 reward=reward)
      >>> tree = Tree(task_id="t", nodes=(Node(path=(), observation=(5, 6), stop="prompt"),
      ...     turn(0, stop="continue"), turn(0, 0, stop="end", reward=1.0),
      ...     turn(0, 1, stop="end", reward=0.0)))
      >>> [tree.returns(leaf) for leaf in tree.leaves()]
      [1.0, 0.0]
      >>> tree.total_tokens, tree.unique_tokens
      (8, 5)
    """

    task_id: str
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        paths = [n.path for n in self.nodes]
        if not paths or paths[0] != () or any(a >= b for a, b in pairwise(paths)):
            raise ValueError(f"tree {self.task_id}: nodes must be the root, then sorted by path")
        for node in self.nodes[1:]:
            parent = self._by_path.get(node.path[:-1])
            if parent is None:
                raise ValueError(f"tree {self.task_id}: node {node.path} has no parent")
            if parent.is_leaf:
                raise ValueError(f"tree {self.task_id}: node {node.path} follows a leaf")

    @cached_property
    def _by_path(self) -> dict[Path, Node]:
        return {n.path: n for n in self.nodes}

    @cached_property
    def _children(self) -> dict[Path, list[Node]]:
        children: dict[Path, list[Node]] = {n.path: [] for n in self.nodes}
        for node in self.nodes[1:]:
            children[node.path[:-1]].append(node)
        return children

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def node(self, path: Path) -> Node:
        return self._by_path[path]

    def children(self, node: Node) -> Sequence[Node]:
        return self._children[node.path]

    def leaves(self) -> list[Node]:
        return [n for n in self.nodes if n.is_leaf]

    def returns(self, leaf: Node) -> float | None:
        """All that was paid on the way to a leaf and at it; None if the leaf was never scored."""
        if leaf.reward is None:
            return None
        return math.fsum(node.reward or 0.0 for node in self.branch(leaf).nodes)

    def branch(self, leaf: Node) -> Branch:
        return Branch(
            tuple(self._by_path[leaf.path[:depth]] for depth in range(len(leaf.path) + 1))
        )

    def branches(self) -> Iterator[Branch]:
        """One for each leaf, in the order of their paths."""
        return (self.branch(leaf) for leaf in self.leaves())

    @property
    def unique_tokens(self) -> int:
        """Tokens when each shared one counts once."""
        return sum(len(n.tokens) + len(n.observation) for n in self.nodes)

    @property
    def total_tokens(self) -> int:
        """Tokens of all branches, shared ones once for each."""
        return sum(len(b.tokens) for b in self.branches())
