"""From a batch to the credit of each token: the components a recipe chooses from.

The arithmetic is in ``spanwise.advantages``; here are its settings. To add your own,
subclass ``Advantage`` in your own file and put it into a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spanwise import advantages as adv
from spanwise.batch import Batch
from spanwise.errors import SpanwiseError
from spanwise.partitions import LowProbability, Partition
from spanwise.spans import span_statistics


@dataclass(frozen=True, kw_only=True)
class Advantage(ABC):
    """A rule of credit: how much better each token was than expected.

    Example:
      >>> @dataclass(frozen=True, kw_only=True)
      ... class PlainReturn(Advantage):
      ...     scale: float = 1.0
      ...
      ...     def __call__(self, batch):
      ...         return adv.to_tokens(self.scale * batch.returns, batch.mask)
    """

    needs_values: ClassVar[bool] = False
    """True if it reads ``batch.values``: the recipe then needs a critic."""

    compares: ClassVar[bool] = False
    """True if it compares the trajectories of a prompt: each then needs two or more."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """``[N, T]`` advantages, 0 where ``batch.mask`` is False."""

    def bind(self, tokenizer: Any) -> Advantage:
        """The same, once it has looked up what it needs in the vocabulary."""
        return self

    def critic_targets(self, batch: Batch) -> Tensor:
        """``[N, T]`` what the critic is fitted to; asked for only with ``needs_values``."""
        raise NotImplementedError(f"{type(self).__name__} has no targets for a critic")

    def node_values(self, batch: Batch) -> Tensor | None:
        """``[M]`` values of the nodes, for those who look; None if there are none."""
        return None

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Metrics of the credit of a step."""
        return {}


@dataclass(frozen=True, kw_only=True)
class GroupAdvantage(Advantage):
    """One advantage for a whole trajectory: its return against those of the same prompt."""

    baseline: Literal[
        "group_normalised",
        "group_mean",
        "leave_one_out",
        "batch_normalised",
        "batch_scaled",
        "length_weighted",
        "batch_whitened",
    ] = "group_normalised"
    """Baseline of GRPO, Dr. GRPO, RLOO, REINFORCE++-baseline (the group's mean), Lite PPO, OPO, or
    plain REINFORCE++ (no group: whitened over the batch's tokens)."""

    @property
    def compares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True but for plain REINFORCE++."""
        return self.baseline != "batch_whitened"

    def __call__(self, batch: Batch) -> Tensor:
        returns, groups = batch.returns, batch.groups
        if self.baseline == "batch_whitened":
            return adv.whiten(adv.to_tokens(returns, batch.mask), batch.loss_mask)
        if self.baseline == "length_weighted":
            lengths = batch.mask.sum(1)
            per_row = adv.length_weighted_advantages(returns, groups, lengths)
            return adv.to_tokens(per_row, batch.mask)
        function = {
            "group_normalised": adv.group_advantages,
            "group_mean": adv.centred_advantages,
            "leave_one_out": adv.leave_one_out_advantages,
            "batch_normalised": adv.global_advantages,
            "batch_scaled": adv.batch_scaled_advantages,
        }[self.baseline]
        return adv.to_tokens(function(returns, groups), batch.mask)


@dataclass(frozen=True, kw_only=True)
class TreeAdvantage(Advantage):
    """One advantage for each turn, from its return to go (AT²PO, arXiv 2601.04767)."""

    compares: ClassVar[bool] = True

    value: Literal["child_softmax", "child_entropy", "child_mean", "leaf_mean"] = "child_softmax"
    """Mean that is a turn's value: over its children, weighted by the softmax of their entropies
    (what the official code runs), by their share of the entropy (another reading of the paper)
    or alike, or over all leaves below."""

    advantage: Literal["node_value", "over_parent", "over_root", "over_both"] = "node_value"
    """Advantage of a turn: its value (the paper's best), or its value less the parent's, less
    the root's, or the sum of both differences."""

    def __call__(self, batch: Batch) -> Tensor:
        function = {
            "node_value": adv.node_value,
            "over_parent": adv.over_parent,
            "over_root": adv.over_root,
            "over_both": adv.over_both,
        }[self.advantage]
        per_node = function(*self._values(batch), batch.parents, batch.leaves)
        return adv.gather_nodes(per_node, batch.nodes)

    def node_values(self, batch: Batch) -> Tensor:
        """The return to go of each turn, less the mean of what is to come at its depth."""
        return adv.node_value(*self._values(batch), batch.parents, batch.leaves)

    def _values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values of whole trajectories through each node, and what was paid before it."""
        function = {
            "child_softmax": adv.child_softmax_values,
            "child_entropy": adv.child_entropy_values,
            "child_mean": adv.child_mean_values,
            "leaf_mean": adv.leaf_mean_values,
        }[self.value]
        returns, paid = adv.normalised_returns(
            batch.parents, batch.leaves, batch.returns, batch.turn_rewards
        )
        return function(batch.parents, batch.entropies, batch.leaves, returns), paid


@dataclass(frozen=True, kw_only=True)
class SpanAdvantage(Advantage):
    """Credit from a critic that is trusted at span boundaries: SAE, GAE and what is between.

    SAE (arXiv 2601.07320) with the defaults; GAE over ``Token()``; Monte Carlo with
    ``lam=1``; VAPO (arXiv 2504.05118) over ``Token()`` with ``length_alpha=0.05``.
    """

    needs_values: ClassVar[bool] = True

    spans: Partition = LowProbability()
    """Spans at whose boundaries the critic is trusted."""

    lam: float = 0.95
    """Trace decay from one span to the next, from 0 to 1."""

    length_alpha: float | None = None
    """VAPO's α: instead of ``lam``, ``1 - 1 / (α * model tokens of the row)``."""

    critic_lam: float = 1.0
    """Trace decay of the critic's own targets; 1 fits it to the returns themselves."""

    gamma: float = 1.0
    """Discount for each model token."""

    whiten: bool = True
    """Normalise the advantages of a batch to mean 0 and deviation 1 over its model tokens."""

    def __post_init__(self) -> None:
        for name in ("lam", "critic_lam", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpanwiseError(
                    f"advantage.{name} must lie in [0, 1], got {getattr(self, name)}"
                )
        if self.length_alpha is not None and not self.length_alpha > 0:
            raise SpanwiseError(f"advantage.length_alpha must be above 0, got {self.length_alpha}")

    def bind(self, tokenizer: Any) -> SpanAdvantage:
        return replace(self, spans=self.spans.bind(tokenizer))

    def __call__(self, batch: Batch) -> Tensor:
        alpha = self.length_alpha
        lam = self.lam if alpha is None else adv.length_adaptive_lambda(batch.mask, alpha)
        advantages = adv.span_advantages(
            batch.rewards_by_token,
            _values(batch),
            self.spans(batch),
            gamma=self.gamma,
            lam=lam,
            bootstrap=batch.end_values,
        )
        return adv.whiten(advantages, batch.loss_mask) if self.whiten else advantages

    def critic_targets(self, batch: Batch) -> Tensor:
        return adv.span_returns(
            batch.rewards_by_token,
            _values(batch),
            self.spans(batch),
            gamma=self.gamma,
            lam=self.critic_lam,
            bootstrap=batch.end_values,
        )

    def node_values(self, batch: Batch) -> Tensor:
        """The critic's value before the first token of each turn."""
        first = torch.nn.functional.pad(batch.nodes[:, :-1], (1, 0), value=-1) != batch.nodes
        opens = first & batch.mask
        values = _values(batch)
        found = values.new_zeros(len(batch.parents))
        return found.index_put((batch.nodes[opens],), values[opens])

    def metrics(self, batch: Batch) -> dict[str, float]:
        found = span_statistics(self.spans(batch))
        return {f"credit/{name}": figure for name, figure in found.items()}


def _values(batch: Batch) -> Tensor:
    if batch.values is None:
        raise SpanwiseError("span advantages need values: give the recipe a critic")
    return batch.values
