"""Settings of the critic: its trunk, and its fit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from spanwise import losses
from spanwise.batch import Batch
from spanwise.errors import SpanwiseError
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.optimizer import adamw, check_betas
from spanwise.learn.optimizer_step import Counts, Trainee
from spanwise.models.critic import SeparateCritic, SharedCritic, ValueModel
from spanwise.models.loading import Model
from spanwise.models.packing import TokenTree
from spanwise.models.sharding import shard
from spanwise.models.tree_attention import TrunkCost
from spanwise.runtime.distributed import Ranks


@dataclass(frozen=True, kw_only=True)
class Critic(ABC):
    """A kind of critic, or none."""

    @abstractmethod
    def build(self, policy: Any, model: Model, ranks: Ranks) -> FittedCritic | None:
        """The critic itself, from a policy that is not split yet; None if there is none."""

    def own_model(self, policy: Model) -> Model | None:
        """The starting model of a trunk of the critic's own; None if it has no such trunk."""
        return None

    def check(self, policy: Model, tokenizer: Any) -> None:
        """Refuse what cannot be built, before any model is loaded.

        Raises:
          ModelError: if the trunk's model cannot be used, or reads other tokens.
        """


@dataclass(frozen=True, kw_only=True)
class NoCritic(Critic):
    """Credit comes from the outcomes of the same prompt alone."""

    def build(self, policy: Any, model: Model, ranks: Ranks) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class ValueHead(Critic):
    """A value head, fitted by an AdamW of its own."""

    trunk: Literal["own", "policy"] = "own"
    """Trunk of the critic: a copy of the starting model, or the policy itself, which takes half
    the memory and is then moved by the value loss too."""

    path: str = ""
    """Model that a trunk of its own starts from, as ``model.path``, with the policy's tokenizer,
    such as a reward model; by default the policy's."""

    trunk_gradient: float = 0.1
    """Share of the value loss's gradient that the policy's trunk gets, with ``trunk="policy"``;
    0 leaves the policy undisturbed."""

    reads_surprise: bool = False
    """Input of the head: also how unlikely the tokens so far were, which a small model learns
    from sooner than it learns to check the work."""

    learning_rate: float = 1e-5
    """Learning rate of the head and of a trunk of its own, at its highest."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of its AdamW, as ``update.betas``."""

    clip: float | None = 0.5
    """Distance from its old value beyond which a value is drawn no further; None: no limit."""

    pretraining_steps: int = 20
    """Batches on which the critic alone is fitted, policy frozen, before training; fewer
    if its explained variance stops rising sooner."""

    def __post_init__(self) -> None:
        if self.path and self.trunk != "own":
            raise SpanwiseError(
                f"a critic on the policy's trunk has no model of its own: leave out path="
                f'"{self.path}", or set trunk="own"'
            )
        for name in ("learning_rate", "trunk_gradient", "pretraining_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpanwiseError(f"critic.{name} must be at least 0, got {getattr(self, name)}")
        check_betas(self.betas, "critic.betas")
        if self.clip is not None and not self.clip > 0:
            raise SpanwiseError(
                f"critic.clip must be above 0, or None for no clipping, got {self.clip}"
            )

    def own_model(self, policy: Model) -> Model | None:
        if self.trunk != "own":
            return None
        return replace(policy, path=self.path) if self.path else policy

    def check(self, policy: Model, tokenizer: Any) -> None:
        if self.path:
            replace(policy, path=self.path).check_vocabulary(tokenizer)

    def build(self, policy: Any, model: Model, ranks: Ranks) -> FittedCritic:
        own = self.own_model(model)
        if own is None:
            critic: ValueModel = SharedCritic(
                policy, self.trunk_gradient, reads_surprise=self.reads_surprise
            )
        else:
            start = own.load(head=False) if self.path else policy
            critic = SeparateCritic(start, reads_surprise=self.reads_surprise)
            shard(critic, ranks.mesh)
        return FittedCritic(
            model=critic,
            optimizer=adamw(critic, self.learning_rate, betas=self.betas),
            clip=self.clip,
            pretraining_steps=self.pretraining_steps,
        )


@dataclass(kw_only=True)
class FittedCritic(Trainee):
    """A critic with its optimizer."""

    model: ValueModel
    optimizer: torch.optim.Optimizer
    clip: float | None
    pretraining_steps: int

    prefix: ClassVar[str] = "value_"

    def cost(self) -> TrunkCost:
        return self.model.cost()

    def loss(
        self, part: Batch, tree: TokenTree | None, metrics: MetricMeans, counts: Counts
    ) -> Tensor:
        """The value loss of some rows as their part of a minibatch's mean over tokens."""
        old_logprobs, old_values, targets = part.old_logprobs, part.values, part.value_targets
        assert old_logprobs is not None and old_values is not None and targets is not None
        values = self.model(part.tokens, part.mask, part.lengths, old_logprobs, tree).values
        per_token = losses.value_loss(values, old_values, targets, part.mask, clip=self.clip)
        return losses.mean_by_token(per_token, part.mask, num_tokens=counts.num_tokens)


def still_rising(history: Sequence[float], *, window: int = 6, least: float = 0.01) -> bool:
    """True while the newest figures are, on average, above those before them.

    Figures near 0 have not begun to rise, and count as rising.
    ``window`` of them are averaged, so that one batch decides nothing; a rise of no more than
    ``least`` is none.

    Example:
      >>> still_rising([0.0, 0.1, 0.2, 0.3] + [0.4] * 8), still_rising([0.4] * 12)
      (True, False)
    """
    if len(history) < 2 * window:
        return True
    newest = sum(history[-window:]) / window
    before = sum(history[-2 * window : -window]) / window
    return newest <= least or newest > before + least
