"""From a batch to the credit of each token: the components a recipe chooses from.

The arithmetic is in ``spanwise.advantages``; here are its settings. To add your own,
subclass ``Advantage`` in your own file and put it into a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from spanwise import advantages as adv
from spanwise.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Advantage(ABC):
    """How much better each token was than expected.

    Example:
      >>> @dataclass(frozen=True, kw_only=True)
      ... class PlainReward(Advantage):
      ...     scale: float = 1.0
      ...
      ...     def __call__(self, batch):
      ...         return adv.to_tokens(self.scale * batch.rewards, batch.mask)
    """

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """``[N, T]`` advantages, 0 where ``batch.mask`` is False."""

    def node_values(self, batch: Batch) -> Tensor | None:
        """``[M]`` values of the nodes, for those who look; None if there are none."""
        return None


@dataclass(frozen=True, kw_only=True)
class GroupAdvantage(Advantage):
    """One advantage for a whole trajectory: its reward against those of the same prompt."""

    baseline: Literal["group_normalised", "group_mean", "leave_one_out"] = "group_normalised"
    """GRPO, Dr. GRPO, RLOO."""

    def __call__(self, batch: Batch) -> Tensor:
        function = {
            "group_normalised": adv.group_advantages,
            "group_mean": adv.centred_advantages,
            "leave_one_out": adv.leave_one_out_advantages,
        }[self.baseline]
        return adv.to_tokens(function(batch.rewards, batch.groups), batch.mask)


@dataclass(frozen=True, kw_only=True)
class TreeAdvantage(Advantage):
    """One advantage for each turn, from the outcomes below it (AT²PO, arXiv 2601.04767)."""

    value: Literal["child_softmax", "child_mean", "leaf_mean"] = "child_softmax"
    """How a turn's value follows from what came after: children weighted by the softmax
    of their entropy (the paper), children alike, or all leaves below alike."""

    advantage: Literal["node_value", "over_parent", "over_root", "over_both"] = "node_value"
    """A turn's value as it is (the paper's best), or less its parent's, the root's, or the
    sum of both differences."""

    def __call__(self, batch: Batch) -> Tensor:
        function = {
            "node_value": adv.node_value,
            "over_parent": adv.over_parent,
            "over_root": adv.over_root,
            "over_both": adv.over_both,
        }[self.advantage]
        per_node = function(self.node_values(batch), batch.parents, batch.leaves)
        return adv.gather_nodes(per_node, batch.nodes)

    def node_values(self, batch: Batch) -> Tensor:
        function = {
            "child_softmax": adv.child_softmax_values,
            "child_mean": adv.child_mean_values,
            "leaf_mean": adv.leaf_mean_values,
        }[self.value]
        rewards = adv.normalised_leaf_rewards(batch.rewards, batch.groups)
        return function(batch.parents, batch.entropies, batch.leaves, rewards)
