"""What is trained, and how a step's trees become an update of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spanwise.advantages import explained_variance
from spanwise.batch import Batch
from spanwise.credit import Advantage
from spanwise.learn.nonfinite import NonfiniteCounter
from spanwise.models.lora import copy_trainable
from spanwise.models.sharding import copy_to_sample_from, refresh, scatter, split
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.train.config import TrainConfig
from spanwise.tree import Tree


class Learner:
    """The policy, its critic and its reference, with their optimizers.

    Args:
      config: The run's.
      model: The policy, as training starts from it.
      advantage: The run's credit, prepared for the tokenizer.
      ranks: Over which models are split and work is shared out.
    """

    def __init__(
        self, config: TrainConfig, model: Any, advantage: Advantage, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.model = model
        self.advantage = advantage
        self.settings = config.update
        """From the first batch on, with plain rows if it showed that they cannot be packed."""
        self._checked = False
        self.ranks = ranks
        self.critic = config.critic.build(model, config.model, ranks)
        self.nonfinite = NonfiniteCounter()
        self.kl = config.kl
        """With the coefficient as it is now."""
        held = config.kl.coefficient > 0
        self.reference = copy_trainable(model).requires_grad_(False) if held else None
        if self.reference is not None:
            split(self.reference, ranks.mesh)
        self._whole = copy_to_sample_from(model, ranks.mesh, apart=config.max_off_policy_steps > 0)
        split(model, ranks.mesh)
        self.optimizer = config.update.optimizer(model)

    def full_policy(self) -> Any:
        """The policy as it is now with all of its weights, to sample from and to save.

        Every rank has to ask. Where the policy is split or the next step is sampled while it
        is trained, this is a copy, at rest until the next call.
        """
        refresh(self._whole, self.model)
        return self._whole

    def load_policy(self, read: Callable[[Any], None]) -> None:
        """Have ``read`` change a model that has all of the policy's weights, and take them over.

        Every rank has to ask.
        """
        read(self._whole)
        if self._whole is not self.model:
            scatter(self._whole, self.model)

    def batch(self, trees: Sequence[Tree]) -> Batch | None:
        """The trees as rows, with all that credit and losses are to see.

        Returns:
          None if no branch has a reward: there is nothing to train on.
        """
        if all(leaf.reward is None for tree in trees for leaf in tree.leaves()):
            return None
        batch = Batch.from_trees(trees)
        critic = None if self.critic is None else self.critic.model
        if not self._checked:
            self.settings = self.settings.validate(self.model, batch, critic)
            self._checked = True
        batch = self.settings.score(
            self.model, batch, reference=self.reference, critic=critic, ranks=self.ranks
        )
        limit = self.config.rollout.max_response_tokens
        batch = self.config.importance(self.config.overlong(batch, limit))
        return self.kl.in_reward(batch)

    def update(self, batch: Batch, advantages: Tensor, *, seed: int) -> dict[str, float]:
        """Train policy and critic on a batch.

        A policy that nothing would move is left alone, and so is everything if no row is
        trained on; ``no_signal`` counts either.

        Returns:
          Metrics of the step.

        Raises:
          NonfiniteError: if loss or gradient were not finite too often in a row.
        """
        config, in_loss = self.config, self.kl.where == "loss" and self.reference is not None
        figures = self.advantage.metrics(batch) | config.importance.metrics(batch)
        if self.reference is not None:
            figures |= self._divergence(batch)
        targets = None
        if self.critic is not None:
            targets, of_values = self._value_targets(batch)
            figures |= of_values
        credited = bool((advantages[batch.loss_mask] != 0).any())
        trains = bool(batch.loss_mask.any())
        if trains and (credited or in_loss or config.objective.entropy_bonus):
            figures |= self.settings(
                self.model,
                self.optimizer,
                batch,
                advantages,
                config.objective,
                seed=seed,
                kl=self.kl if in_loss else None,
                critic=self.critic,
                value_targets=targets,
                ranks=self.ranks,
                nonfinite=self.nonfinite,
            )
        else:
            figures["no_signal"] = 1.0
            if trains and self.critic is not None:
                figures |= self.fit_critic(batch, seed=seed)
        if self.reference is not None:
            self.kl = self.kl.update(figures["kl"])
        return figures

    def fit_critic(self, batch: Batch, *, seed: int) -> dict[str, float]:
        """Train the critic alone; the policy stays as it is, a shared trunk too."""
        assert self.critic is not None
        targets, figures = self._value_targets(batch)
        if bool(batch.loss_mask.any()):
            figures |= self.settings.fit_critic(
                self.critic,
                batch,
                targets,
                self.config.objective,
                seed=seed,
                ranks=self.ranks,
                nonfinite=self.nonfinite,
            )
        return figures

    def _value_targets(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The critic's targets, and how well it predicted them before it saw them."""
        assert batch.values is not None
        targets = self.advantage.critic_targets(batch)
        explained = explained_variance(batch.values, targets, batch.loss_mask)
        values = batch.values[batch.loss_mask]
        mean = float(values.mean()) if values.numel() else 0.0
        return targets, {"explained_variance": explained, "value_mean": mean}

    def _divergence(self, batch: Batch) -> dict[str, float]:
        assert batch.old_logprobs is not None and batch.reference_logprobs is not None
        with torch.no_grad():
            nats = self.kl.estimates(batch.old_logprobs, batch.reference_logprobs, batch.mask)
        mean = float(nats.sum() / batch.mask.sum().clamp(min=1))
        return {"kl": mean, "kl_coefficient": self.kl.coefficient}
