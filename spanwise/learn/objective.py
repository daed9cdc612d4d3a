"""The policy loss: one clipped surrogate, with the span of its ratio as a setting."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from spanwise import losses
from spanwise.batch import Batch
from spanwise.errors import SpanwiseError
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.optimizer_step import Counts, Trainee
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.models.packing import TokenTree
from spanwise.models.scoring import token_scores
from spanwise.models.tree_attention import TrunkCost
from spanwise.partitions import Partition, Turn
from spanwise.spans import span_lengths


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The policy loss. The defaults are ATPO's (arXiv 2601.04767).

    The ratio over ``Token()`` with wider clipping is PPO, GRPO and DAPO, and with another
    ``clip`` CISPO and SAPO; over ``Trajectory()`` it is GSPO.
    """

    ratio_spans: Partition = Turn()
    """Spans over which the policy ratio is averaged, in the logarithm."""

    gradient: Literal["token", "span"] = "token"
    """Path of the gradient: each token's own log-prob (GSPO-token form), or the span's mean."""

    clip: losses.Clip = "hard"
    """Clip that cuts the gradient outside the range (PPO), bounds the weight that each token's
    gradient has (CISPO: ``detached``), or lets it fade (SAPO: ``soft``)."""

    clip_low: float = 3e-3
    """Distance below 1 at which the ratio is clipped. Soft: 1 / SAPO's τ of bad tokens."""

    clip_high: float = 4e-3
    """Distance above 1 at which the ratio is clipped. Soft: 1 / SAPO's τ of good tokens."""

    dual_clip: float | None = None
    """Bound, above 1, on the loss of a bad token: that of one this many times likelier now.
    For a hard clip alone."""

    entropy_bonus: float = 0.0
    """Bonus, taken off the loss, for each nat of entropy of a token's distribution."""

    loss_aggregation: Literal["sample", "token"] | int = "sample"
    """Mean that the loss is: over samples, over tokens (DAPO), or a number that the sum over
    each sample's tokens is divided by, such as the limit of an answer (Dr. GRPO)."""

    shared_turns: Literal["per_leaf", "sqrt", "mean", "once"] = "per_leaf"
    """Weight of a turn in each of its c branches: 1, TreeRL's 1/sqrt(c), or 1/c; or 1 in the
    first of them alone."""

    def __post_init__(self) -> None:
        clip = self.clip, self.clip_low, self.clip_high, self.dual_clip
        if fault := losses.clip_fault(*clip):
            raise SpanwiseError(f"objective.{fault}")
        if not math.isfinite(self.entropy_bonus):
            raise SpanwiseError(
                f"objective.entropy_bonus must be a number, got {self.entropy_bonus}"
            )
        if isinstance(self.loss_aggregation, int) and self.loss_aggregation < 1:
            raise SpanwiseError(
                'objective.loss_aggregation is "sample", "token" or at least 1 token, got '
                f"{self.loss_aggregation}"
            )

    def bind(self, tokenizer: Any) -> Objective:
        """The same objective once its spans have looked up what they need."""
        return replace(self, ratio_spans=self.ratio_spans.bind(tokenizer))

    def weights(self, batch: Batch) -> Tensor:
        """``[N, T]`` float32 weight of each token that a loss is taken of."""
        function = {
            "per_leaf": losses.weight_per_leaf,
            "sqrt": losses.weight_sqrt,
            "mean": losses.weight_mean,
            "once": losses.weight_once,
        }[self.shared_turns]
        weights = function(torch.where(batch.loss_mask, batch.nodes, -1))
        return weights if batch.importance is None else weights * batch.importance

    def __call__(
        self,
        logprobs: Tensor,
        batch: Batch,
        counts: Counts,
        *,
        entropies: Tensor | None = None,
        kl: KLPenalty | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some rows as their part of a minibatch's loss, and its metrics.

        Args:
          logprobs: ``[N, T]`` under the policy being trained.
          batch: The rows, with ``old_logprobs``, ``advantages``, ``ratio_spans`` and
            ``loss_weights``.
          counts: Rows and model tokens of the whole minibatch.
          entropies: ``[N, T]`` with their gradient; needed for an entropy bonus.
          kl: The penalty, if the loss is to have one; the rows then need the log-probs of
            the reference.

        Returns:
          A scalar that adds up over the parts of the minibatch, and scalar metrics.
        """
        old, advantages, spans = batch.old_logprobs, batch.advantages, batch.ratio_spans
        assert old is not None and advantages is not None and spans is not None
        per_token, metrics = losses.clipped_surrogate(
            logprobs,
            old,
            advantages,
            spans,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            ratio={"token": losses.token_gradient_ratio, "span": losses.span_ratio}[self.gradient],
            clip=self.clip,
            dual_clip=self.dual_clip,
        )
        if self.entropy_bonus:
            assert entropies is not None
            per_token = per_token - self.entropy_bonus * entropies
        if kl is not None:
            assert batch.reference_logprobs is not None
            nats = kl.estimates(logprobs, batch.reference_logprobs, batch.mask)
            per_token = per_token + kl.coefficient * nats
        mask, weights = batch.mask, batch.loss_weights
        if self.loss_aggregation == "token":
            loss = losses.mean_by_token(
                per_token, mask, weights=weights, num_tokens=counts.num_tokens
            )
        elif self.loss_aggregation == "sample":
            loss = losses.mean_by_sample(
                per_token, mask, weights=weights, num_samples=counts.num_samples
            )
        else:
            loss = losses.mean_by_constant(
                per_token,
                mask,
                length=self.loss_aggregation,
                weights=weights,
                num_samples=counts.num_samples,
            )
        return loss, metrics


@dataclass(kw_only=True)
class TrainedPolicy(Trainee):
    """The policy as it is trained: its optimizer and its loss."""

    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    kl: KLPenalty | None = None
    """The penalty that is part of the loss, if there is one."""

    temperature: float = 1.0
    """Temperature at which the turns were sampled."""

    def cost(self) -> TrunkCost:
        return TrunkCost.of(self.model)

    def loss(
        self, part: Batch, tree: TokenTree | None, metrics: MetricMeans, counts: Counts
    ) -> Tensor:
        inputs = (part.tokens, part.mask, part.lengths)
        scores = token_scores(self.model, *inputs, tree, temperature=self.temperature)
        loss, figures = self.objective(
            scores.logprobs, part, counts, entropies=scores.entropies, kl=self.kl
        )
        assert part.ratio_spans is not None
        lengths = span_lengths(part.ratio_spans)
        num_spans = float((1 / lengths[lengths > 0].double()).sum())
        for name, metric in figures.items():
            by_span = name.startswith("clip_frac/span")
            metrics.add({name: metric}, weight=num_spans if by_span else part.num_model_tokens)
        return loss
