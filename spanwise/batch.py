"""Trees to tensors: the only place where tokens, masks, turns and rewards are aligned.

Every tensor of a batch that has a ``T`` axis is indexed by the token itself:
``engine_logprobs[i, t]`` is the log-prob *of* ``tokens[i, t]``, and so is every
log-prob, value and advantage that is computed from a batch later on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spanwise import advantages as adv
from spanwise.tree import Node, Path, Tree

PER_NODE = frozenset(["parents", "entropies", "turn_rewards"])
"""The columns of a batch that have a row for each node of its trees, not for each branch."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Branches as rows, and the turns they are made of as nodes.

    ``N`` branches, right-padded to ``T`` tokens; ``M`` nodes over all trees, a parent
    before its children. Branches whose leaf has no reward are left out, and counted.
    """

    tokens: Tensor
    """``[N, T]`` int64, 0 where padded."""

    lengths: Tensor
    """``[N]`` int64, tokens of the branch, prompt and observations included."""

    mask: Tensor
    """``[N, T]`` bool, True on tokens that the model sampled."""

    turns: Tensor
    """``[N, T]`` int64, number of the turn within its branch; -1 where mask is False."""

    nodes: Tensor
    """``[N, T]`` int64, number of the node over the batch; -1 where mask is False."""

    engine_logprobs: Tensor
    """``[N, T]`` float32, as the engine reported at temperature 1; 0 where mask is False."""

    sampling_logprobs: Tensor
    """``[N, T]`` float32, under the distribution drawn from; 0 where mask is False."""

    groups: Tensor
    """``[N]`` int64, number of the tree."""

    leaves: Tensor
    """``[N]`` int64, node at which the branch ends."""

    parents: Tensor
    """``[M]`` int64, parent of each node; -1 for a root."""

    entropies: Tensor
    """``[M]`` float32, ``H`` of each node, in nats; 0 for a root."""

    turn_rewards: Tensor
    """``[M]`` float32, what the environment paid for each node; 0 if nothing."""

    texts: tuple[str, ...]
    """Text that the model wrote in each of the ``M`` nodes; empty for a root."""

    observations: tuple[str, ...]
    """Text that the environment put after each of the ``M`` nodes; at a root, the question.
    What a turn ``n`` answers is ``observations[parents[n]]``."""

    outcomes: tuple[Mapping[str, Any], ...]
    """The environment's own values for each of the ``M`` nodes."""

    task_ids: tuple[str, ...]
    """The task of each tree, by its number in ``groups``."""

    num_excluded: int
    """Branches that have no reward and are not in the batch."""

    truncated: Tensor
    """``[N]`` bool, True where the token limit cut the branch."""

    trained: Tensor
    """``[N]`` bool, False where a row counts for its group's baseline and no loss."""

    old_logprobs: Tensor | None = None
    """``[N, T]`` under the policy at the start of the update, at the temperature of sampling."""

    importance: Tensor | None = None
    """``[N, T]`` by how much each token's loss is weighted for where it was drawn from."""

    token_entropies: Tensor | None = None
    """``[N, T]`` of the policy's distribution at each token at the start of the update, at the
    temperature of sampling, in nats."""

    reference_logprobs: Tensor | None = None
    """``[N, T]`` under the frozen reference policy, if there is one, at the same temperature."""

    token_rewards: Tensor | None = None
    """``[N, T]`` paid for single tokens besides what the environment paid for turns, such as
    penalties for length and divergence."""

    values: Tensor | None = None
    """``[N, T]`` of the critic, predicted before the token, if there is a critic."""

    end_values: Tensor | None = None
    """``[N]`` bootstrapped from after the last model token; 0 for rows that ended."""

    advantages: Tensor | None = None
    """``[N, T]`` credit of each model token, 0 where mask is False."""

    value_targets: Tensor | None = None
    """``[N, T]`` what the critic is fitted to, if there is a critic."""

    ratio_spans: Tensor | None = None
    """``[N, T]`` int64, the span over which each token's policy ratio is averaged."""

    loss_weights: Tensor | None = None
    """``[N, T]`` how much each token counts in the loss."""

    @staticmethod
    def from_trees(trees: Sequence[Tree]) -> Batch:
        """Lay out the branches of some trees, in order.

        Raises:
          ValueError: if no branch of any tree has a reward.

        Example:
          >>> from spanwise.tree import Node
          >>> root = Node(path=(), observation=(5, 6), stop="prompt")
          >>> def turn(*path, stop, observation=(), reward=None):
          ...     return Node(path=path, tokens=(1, 2), engine_logprobs=(-1.0, -3.0), stop=stop,
          ...         sampling_logprobs=(-1.0, -3.0), observation=observation, reward=reward)
          >>> batch = Batch.from_trees([Tree(task_id="t", nodes=(root,
          ...     turn(0, stop="continue", observation=(9,)), turn(0, 0, stop="end", reward=1.0),
          ...     turn(1, stop="end", reward=0.0)))])
          >>> batch.turns.tolist()
          [[-1, -1, 0, 0, -1, 1, 1], [-1, -1, 0, 0, -1, -1, -1]]
          >>> batch.nodes[1].tolist(), batch.parents.tolist(), batch.entropies.tolist()
          ([-1, -1, 3, 3, -1, -1, -1], [-1, 0, 1, 0], [0.0, 2.0, 2.0, 2.0])
        """
        numbers: dict[tuple[int, Path], int] = {}
        parents: list[int] = []
        nodes: list[Node] = []
        rows: list[list[tuple[int, Node]]] = []  # numbers and nodes of each branch
        groups: list[int] = []
        num_excluded = 0
        for group, tree in enumerate(trees):
            for node in tree.nodes:
                parents.append(numbers[group, node.path[:-1]] if node.path else -1)
                nodes.append(node)
                numbers[group, node.path] = len(numbers)
            for branch in tree.branches():
                if branch.leaf.reward is None:
                    num_excluded += 1
                else:
                    rows.append([(numbers[group, n.path], n) for n in branch.nodes])
                    groups.append(group)
        if not rows:
            raise ValueError(
                f"none of the {num_excluded} branches has a reward: there is nothing to train on"
            )

        def column(of_turn: Callable[[int, int, Node], Sequence[float]], fill: float) -> Tensor:
            """What its depth, number and node give a turn's tokens; ``fill`` at all others."""
            return _pad(
                [
                    [(*of_turn(depth, k, n), *[fill] * len(n.observation)) for depth, (k, n) in row]
                    for row in map(enumerate, rows)
                ],
                fill,
            )

        tokens = [[(*n.tokens, *n.observation) for _, n in row] for row in rows]
        nodes_of_tokens = column(lambda _, number, n: [number] * len(n.tokens), -1)
        return Batch(
            tokens=_pad(tokens, 0),
            lengths=torch.tensor([sum(map(len, row)) for row in tokens]),
            mask=nodes_of_tokens >= 0,
            turns=column(lambda depth, _, n: [depth - 1] * len(n.tokens), -1),
            nodes=nodes_of_tokens,
            engine_logprobs=column(lambda _depth, _, n: n.engine_logprobs, 0.0),
            sampling_logprobs=column(lambda _depth, _, n: n.sampling_logprobs, 0.0),
            groups=torch.tensor(groups),
            leaves=torch.tensor([row[-1][0] for row in rows]),
            parents=torch.tensor(parents),
            entropies=torch.tensor([n.entropy for n in nodes], dtype=torch.float32),
            turn_rewards=torch.tensor([n.reward or 0.0 for n in nodes], dtype=torch.float32),
            texts=tuple(n.text for n in nodes),
            observations=tuple(n.observation_text for n in nodes),
            outcomes=tuple(n.outcome for n in nodes),
            task_ids=tuple(tree.task_id for tree in trees),
            num_excluded=num_excluded,
            truncated=torch.tensor([row[-1][1].stop == "length" for row in rows]),
            trained=torch.ones(len(rows), dtype=torch.bool),
        )

    def take(self, rows: Tensor) -> Batch:
        """Some rows, cut to the longest of them; the nodes stay those of the whole batch."""
        width = int(self.lengths[rows].max())
        return self._each(lambda x: x[rows] if x.dim() == 1 else x[rows, :width])

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device; the nodes stay where they are."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Change every tensor that has a row for each branch."""
        per_row = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PER_NODE}
        return replace(self, **{k: change(v) for k, v in per_row.items() if isinstance(v, Tensor)})

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_model_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def loss_mask(self) -> Tensor:
        """``[N, T]`` bool, True on the model tokens that a loss is taken of."""
        return self.mask & self.trained[:, None]

    @property
    def returns(self) -> Tensor:
        """``[N]`` all that a branch was paid: for its turns and for single tokens."""
        paid = self._turn_returns
        if self.token_rewards is not None:
            paid = paid + torch.where(self.mask, self.token_rewards, 0).sum(1)
        return paid.to(self.turn_rewards.dtype)

    @property
    def rewards_by_token(self) -> Tensor:
        """``[N, T]`` with the reward of each turn at its last model token.

        What was paid for a turn without model tokens stands at the last one before it.
        """
        before = adv.paid_before(self.parents, self.turn_rewards.double())[self.nodes.clamp(min=0)]
        width = self.mask.shape[1]
        places = torch.arange(width, device=self.mask.device)
        from_here = torch.where(self.mask, places, width).flip(1).cummin(1).values.flip(1)
        next_model_token = torch.nn.functional.pad(from_here[:, 1:], (0, 1), value=width)
        after = torch.cat([before, self._turn_returns[:, None]], 1).gather(1, next_model_token)
        paid = torch.where(self.mask, after - before, 0).to(self.turn_rewards.dtype)
        return paid if self.token_rewards is None else paid + self.token_rewards

    @property
    def _turn_returns(self) -> Tensor:
        """``[N]`` what a branch's turns were paid, without a rounding that tells their order."""
        rewards = self.turn_rewards.double()
        return (adv.paid_before(self.parents, rewards) + rewards)[self.leaves]


def _pad(rows: Sequence[Sequence[Sequence[float]]], fill: float) -> Tensor:
    """Rows, each given in parts, to the width of the longest; int64 or float32 like ``fill``."""
    dtype = torch.int64 if isinstance(fill, int) else torch.float32
    joined = [torch.tensor(list(chain.from_iterable(row)), dtype=dtype) for row in rows]
    return pad_sequence(joined, batch_first=True, padding_value=fill)
