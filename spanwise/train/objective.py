"""What is minimised: one clipped surrogate, with the span of its ratio as a setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spanwise import losses, spans
from spanwise.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The policy loss. The defaults are ATPO's (arXiv 2601.04767).

    ``ratio_span="token"`` with wider clipping is PPO, GRPO and DAPO; ``"whole"`` is GSPO.
    """

    ratio_span: Literal["token", "turn", "whole"] = "turn"
    """The tokens over which the policy ratio is averaged, in the logarithm."""

    gradient: Literal["token", "span"] = "token"
    """Through each token's own log-prob (GSPO-token form), or through the span's mean."""

    clip_low: float = 3e-3
    """The ratio is clipped below 1 - this."""

    clip_high: float = 4e-3
    """The ratio is clipped above 1 + this."""

    average: Literal["sample", "token"] = "sample"
    """Every sample counts alike, or every token does (DAPO)."""

    shared_turns: Literal["per_leaf", "once", "mean"] = "per_leaf"
    """How often a turn counts that stands in several branches (see ``losses.weights``)."""

    def ratio_spans(self, batch: Batch) -> Tensor:
        """``[N, T]`` spans of the ratio; turns are the tree's own, not guessed from the mask."""
        if self.ratio_span == "turn":
            return batch.turns
        return {"token": spans.by_token, "whole": spans.whole}[self.ratio_span](batch.mask)

    def weights(self, batch: Batch) -> Tensor:
        """``[N, T]`` float32 weight of each model token."""
        function = {
            "per_leaf": losses.weight_per_leaf,
            "once": losses.weight_once,
            "mean": losses.weight_mean,
        }[self.shared_turns]
        return function(batch.nodes)

    def __call__(
        self, logprobs: Tensor, rows: TrainRows, *, num_samples: int, num_tokens: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of some rows as their part of a minibatch's loss, and its metrics.

        Args:
          logprobs: ``[N, T]`` under the policy being trained.
          rows: What else the loss needs of the same rows.
          num_samples: Rows of the whole minibatch.
          num_tokens: Model tokens of the whole minibatch.

        Returns:
          A scalar that adds up over the parts of the minibatch, and scalar metrics.
        """
        ratio = {"token": losses.token_gradient_ratio, "span": losses.span_ratio}[self.gradient]
        per_token, metrics = losses.clipped_surrogate(
            logprobs,
            rows.old_logprobs,
            rows.advantages,
            rows.ratio_spans,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            ratio=ratio,
        )
        if self.average == "sample":
            loss = losses.mean_by_sample(
                per_token, rows.mask, weights=rows.weights, num_samples=num_samples
            )
        else:
            loss = losses.mean_by_token(
                per_token, rows.mask, weights=rows.weights, num_tokens=num_tokens
            )
        return loss, metrics


@dataclass(frozen=True, kw_only=True)
class TrainRows:
    """Rows of a batch with all that an update needs of them; every tensor is ``[N, T]``."""

    tokens: Tensor
    mask: Tensor
    turns: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    ratio_spans: Tensor
    weights: Tensor
    lengths: Tensor
    """``[N]``."""

    groups: Tensor
    """``[N]``."""

    def take(self, rows: Tensor) -> TrainRows:
        """Some rows, without the columns that none of them fills."""
        width = int(self.lengths[rows].max())
        return TrainRows(
            lengths=self.lengths[rows],
            groups=self.groups[rows],
            **{
                name: getattr(self, name)[rows, :width]
                for name in (
                    "tokens",
                    "mask",
                    "turns",
                    "advantages",
                    "old_logprobs",
                    "ratio_spans",
                    "weights",
                )
            },
        )

    def to(self, device: torch.device) -> TrainRows:
        return TrainRows(**{name: value.to(device) for name, value in vars(self).items()})
