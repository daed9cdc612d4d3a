"""The models in training, and the way from a step's trees to their update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spanwise.advantages import explained_variance
from spanwise.batch import Batch
from spanwise.credit import Advantage
from spanwise.errors import SpanwiseError
from spanwise.learn.critic import FittedCritic
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.microbatches import Microbatching
from spanwise.learn.nonfinite import NonfiniteCounter
from spanwise.learn.objective import Objective, TrainedPolicy
from spanwise.learn.optimizer import adamw
from spanwise.learn.optimizer_step import Trainee, optimizer_step
from spanwise.learn.reward_shaping import KLPenalty, Overlong
from spanwise.learn.schedule import Constant, Schedule
from spanwise.learn.update import Update
from spanwise.models.critic import ValueModel
from spanwise.models.logit_factor import logit_factor
from spanwise.models.lora import copy_trainable
from spanwise.models.scoring import token_scores
from spanwise.models.sharding import shard
from spanwise.models.tree_attention import TrunkCost
from spanwise.partitions import Partition
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.runtime.seeds import seed_of
from spanwise.tree import Tree


class Learner:
    """The policy, its critic and its reference, with their optimizers.

    ``score`` turns trees into a batch with everything that the losses need; ``update`` takes
    the optimizer steps. In between, the batch is yours to look at or to change.

    Args:
      policy: Causal language model of transformers, as training starts from it.
      advantage: How rewards become advantages.
      objective: The policy loss.
      update: How a batch becomes optimizer steps.
      schedule: Factor of the learning rates in each step.
      num_steps: Training steps of the whole run, for the schedule.
      critic: Predicts values, for credit that needs them.
      kl: Penalty for moving away from the policy that training starts from.
      overlong: Treatment of answers that the token limit cuts.
      max_response_tokens: That limit.
      importance: Correction for the distribution that tokens were sampled from.
      temperature: Temperature at which turns are sampled, above 0. The policy that is trained
        is the one that is sampled: log-probs, entropies and KL are those at this temperature.
      seed: Seed of the run; the order of the prompts follows from it and the step.
      ranks: The processes over which models are split and work is shared out.

    Raises:
      SpanwiseError: if the temperature is not above 0, or the policy cannot be scored.
    """

    def __init__(
        self,
        policy: Any,
        *,
        advantage: Advantage,
        objective: Objective = Objective(),
        update: Update = Update(),
        schedule: Schedule = Constant(),
        num_steps: int = 1,
        critic: FittedCritic | None = None,
        kl: KLPenalty = KLPenalty(),
        overlong: Overlong = Overlong(),
        max_response_tokens: int = 0,
        importance: ImportanceCorrection = ImportanceCorrection(),
        temperature: float = 1.0,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        if not temperature > 0:
            raise SpanwiseError(f"a policy is trained at a temperature above 0, got {temperature}")
        self.advantage, self.objective, self.kl = advantage, objective, kl
        self.critic, self.ranks, self.nonfinite = critic, ranks, NonfiniteCounter()
        self._overlong, self._limit = overlong, max_response_tokens
        self._importance, self._temperature, self._seed = importance, temperature, seed
        self._schedule, self._num_steps = schedule, num_steps
        self._update, self._microbatching = update, None
        logit_factor(policy)  # a model that cannot be scored is refused before it is sampled from
        self.reference = None
        if kl.coefficient > 0:
            self.reference = copy_trainable(policy).requires_grad_(False)
            shard(self.reference, ranks.mesh)
        shard(policy, ranks.mesh)
        self.model = policy
        self.optimizer = adamw(
            policy, update.learning_rate, betas=update.betas, weight_decay=update.weight_decay
        )
        self._full_rates = self._rates()

    def score(self, trees: Sequence[Tree]) -> Batch | None:
        """The trees as rows, with their credit and everything else that the losses need.

        Returns:
          None if no branch has a reward: there is nothing to train on.
        """
        if all(leaf.reward is None for tree in trees for leaf in tree.leaves()):
            return None
        batch = self.rescore(Batch.from_trees(trees))
        batch = self.kl.in_reward(self._importance(self._overlong(batch, self._limit)))
        return replace(
            batch,
            advantages=_by_token(self.advantage, batch),
            value_targets=None if self.critic is None else self.advantage.critic_targets(batch),
            ratio_spans=_by_token(self.objective.ratio_spans, batch),
            loss_weights=self.objective.weights(batch),
        )

    def rescore(self, batch: Batch) -> Batch:
        """The batch with what policy, critic and reference say of it as they are now."""
        critic = None if self.critic is None else self.critic.model
        if self._microbatching is None:
            update = self._update
            self._microbatching = Microbatching(
                budget=update.tokens_per_microbatch, packed=update.packing == "tree"
            ).checked(self.model, batch, critic)
        return score_batch(
            batch,
            self.model,
            critic=critic,
            reference=self.reference,
            microbatching=self._microbatching,
            temperature=self._temperature,
            ranks=self.ranks,
        )

    def update(self, batch: Batch, *, step: int) -> dict[str, float]:
        """Train policy and critic on a batch from ``score``.

        A policy that nothing would move is left alone, and so is everything if no row is
        trained on; the metric ``no_signal`` counts either.

        Args:
          batch: The rows.
          step: Number of the training step, from 1: the order of the prompts and the
            learning rate follow from it.

        Returns:
          Metrics of the step, each a mean over what it counts.

        Raises:
          NonfiniteError: if loss or gradient were not finite too often in a row.
        """
        assert batch.advantages is not None
        rates = self._set_rates(self._schedule(step, self._num_steps))
        metrics = rates | self.advantage.metrics(batch) | self._importance.metrics(batch)
        metrics |= self._divergence(batch) | self._value_metrics(batch)
        penalty = self.kl if self.kl.where == "loss" and self.reference is not None else None
        credited = bool((batch.advantages[batch.loss_mask] != 0).any())
        trainees: list[Trainee] = []
        if credited or penalty is not None or self.objective.entropy_bonus:
            policy = TrainedPolicy(
                model=self.model,
                optimizer=self.optimizer,
                objective=self.objective,
                kl=penalty,
                temperature=self._temperature,
            )
            trainees.append(policy)
            assert batch.token_entropies is not None
            metrics["entropy"] = float(batch.token_entropies[batch.mask].mean())
        if not trainees or not bool(batch.loss_mask.any()):
            metrics["no_signal"] = 1.0
        if self.critic is not None:
            trainees.append(self.critic)
        return metrics | self._fit(batch, trainees, seed_of(self._seed, step, "update"))

    def fit_critic(self, batch: Batch, *, step: int) -> dict[str, float]:
        """Train the critic alone, at its full learning rate; a shared trunk stays as it is."""
        assert self.critic is not None
        self._set_rates(1.0)
        seed = seed_of(self._seed, step, "critic")
        return self._value_metrics(batch) | self._fit(batch, [self.critic], seed)

    def _fit(self, batch: Batch, trainees: list[Trainee], seed: int) -> dict[str, float]:
        """Optimizer steps on the rows that are trained on, a minibatch at a time."""
        metrics, microbatching = MetricMeans(), self._microbatching
        if not trainees or not bool(batch.loss_mask.any()):
            return {}
        assert microbatching is not None
        alone = trainees == [self.critic]
        frozen = self.critic.model.trunk_frozen() if self.critic and alone else nullcontext()
        with frozen:
            for minibatch in self._minibatches(batch, seed):
                finite = optimizer_step(
                    minibatch,
                    trainees,
                    metrics,
                    microbatching=microbatching,
                    max_gradient_norm=self._update.max_gradient_norm,
                    ranks=self.ranks,
                )
                self.nonfinite.count(finite, minibatch)
        return metrics.over(self.ranks).read()

    def _minibatches(self, batch: Batch, seed: int) -> Iterator[Batch]:
        """The trained rows of a few prompts at a time, prompts in a new order each epoch."""
        generator = torch.Generator().manual_seed(seed)
        rows = batch.take(batch.trained.nonzero().squeeze(-1))
        prompts = rows.groups.unique()
        for _ in range(self._update.epochs):
            order = prompts[torch.randperm(len(prompts), generator=generator)]
            for chosen in order.split(self._update.prompts_per_minibatch):
                yield rows.take(torch.isin(rows.groups, chosen).nonzero().squeeze(-1))

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        critic = {} if self.critic is None else {"critic_learning_rate": self.critic.optimizer}
        return {"learning_rate": self.optimizer, **critic}

    def _rates(self) -> dict[str, float]:
        return {name: o.param_groups[0]["lr"] for name, o in self._optimizers().items()}

    def _set_rates(self, factor: float) -> dict[str, float]:
        """Multiply the full learning rates by a factor; returns what they are now."""
        if not 0 <= factor < math.inf:
            name = type(self._schedule).__name__
            raise SpanwiseError(f"{name} gave the factor {factor}; at least 0 is needed")
        for name, optimizer in self._optimizers().items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self._full_rates[name]
        return self._rates()

    def _value_metrics(self, batch: Batch) -> dict[str, float]:
        """How well the critic predicted its targets before it saw them."""
        if self.critic is None:
            return {}
        assert batch.values is not None and batch.value_targets is not None
        explained = explained_variance(batch.values, batch.value_targets, batch.loss_mask)
        return {"explained_variance": explained, "value_mean": _mean(batch.values, batch)}

    def _divergence(self, batch: Batch) -> dict[str, float]:
        if self.reference is None:
            return {}
        assert batch.old_logprobs is not None and batch.reference_logprobs is not None
        nats = self.kl.estimates(batch.old_logprobs, batch.reference_logprobs, batch.mask)
        return {"kl": float(nats.sum() / batch.mask.sum().clamp(min=1))}


@torch.no_grad()
def score_batch(
    batch: Batch,
    policy: Any,
    *,
    critic: ValueModel | None = None,
    reference: Any = None,
    microbatching: Microbatching,
    temperature: float = 1.0,
    ranks: Ranks = ALONE,
) -> Batch:
    """The batch with ``old_logprobs`` and ``token_entropies`` of the policy, the values of a
    critic and the log-probs of a reference.

    Args:
      batch: The branches.
      policy: Causal language model of transformers.
      critic: Predicts the values, if there is one.
      reference: A frozen model for a KL penalty, if there is one.
      microbatching: How many rows go through a model at once.
      temperature: What policy and reference are scored at.
      ranks: The processes that share the rows out; each gets the scores of all.
    """
    device = next(policy.parameters()).device
    columns: dict[str, Tensor] = {}

    def keep(name: str, rows: Tensor, part: Tensor) -> None:
        shape = (batch.num_rows,) if part.dim() == 1 else batch.tokens.shape
        column = columns.setdefault(name, torch.zeros(shape, dtype=part.dtype))
        at = rows if part.dim() == 1 else (rows, slice(part.shape[1]))
        column[at] = part[: len(rows)].cpu()

    for micro, counts in microbatching(batch, TrunkCost.of(policy), ranks):
        part, tree = batch.take(micro.rows).to(device), micro.tree_on(device)
        rows = micro.rows if counts else micro.rows[:0]
        inputs = (part.tokens, part.mask, part.lengths)
        scores = token_scores(policy, *inputs, tree, temperature=temperature)
        keep("old_logprobs", rows, scores.logprobs)
        keep("token_entropies", rows, scores.entropies)
        if reference is not None:
            found = token_scores(reference, *inputs, tree, temperature=temperature)
            keep("reference_logprobs", rows, found.logprobs)
        if critic is not None:
            predicted = critic(*inputs, scores.logprobs, tree)
            keep("values", rows, predicted.values)
            keep("end_values", rows, predicted.end_values)
    # Each row was scored by one rank and is 0 in the others.
    return replace(batch, **{name: ranks.sum(columns[name]) for name in sorted(columns)})


def _by_token(part: Advantage | Partition, batch: Batch) -> Tensor:
    """What a part, perhaps the user's own, says of each token."""
    found: object = part(batch)
    if isinstance(found, Tensor) and found.shape == batch.mask.shape:
        return found
    said = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise SpanwiseError(
        f"{type(part).__name__} returned {said}, not a tensor of [N, T] = {list(batch.mask.shape)}"
    )


def _mean(column: Tensor, batch: Batch) -> float:
    values = column[batch.loss_mask]
    return float(values.mean()) if values.numel() else 0.0
