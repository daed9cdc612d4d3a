"""Penalties added to the rewards of a rollout before credit is given: length and divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from spanwise import losses
from spanwise.batch import Batch
from spanwise.errors import SpanwiseError


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """Treatment of trajectories that the token limit cuts, or that come near it."""

    on_truncation: Literal["train", "mask", "bootstrap"] = "train"
    """Train on a cut trajectory with its reward as scored; let it count in its group's
    baseline alone; or go on from the critic's value where it was cut."""

    penalty_tokens: int = 0
    """DAPO's soft penalty: over the last so many tokens before the limit the return falls
    by up to 1. 0: no penalty."""

    def __post_init__(self) -> None:
        if self.penalty_tokens < 0:
            raise SpanwiseError(f"penalty_tokens must be at least 0, got {self.penalty_tokens}")

    def __call__(self, batch: Batch, limit: int) -> Batch:
        """The batch as the credit and the losses are to see it.

        Args:
          batch: With ``end_values`` of all rows, if there is a critic.
          limit: Tokens that a response may have.
        """
        if self.penalty_tokens:
            penalty = length_penalties(response_lengths(batch), limit, self.penalty_tokens)
            at_end = batch.mask & (batch.mask.cumsum(1) == batch.mask.sum(1, keepdim=True))
            batch = _paid(batch, torch.where(at_end, penalty[:, None], 0))
        if self.on_truncation == "mask":
            batch = replace(batch, trained=batch.trained & ~batch.truncated)
        if batch.end_values is None:
            return batch
        goes_on = batch.truncated & (self.on_truncation == "bootstrap")
        return replace(batch, end_values=torch.where(goes_on, batch.end_values, 0))


def _paid(batch: Batch, amounts: Tensor) -> Batch:
    """The batch with amounts ``[N, T]`` added to the rewards of its tokens."""
    before = 0.0 if batch.token_rewards is None else batch.token_rewards
    return replace(batch, token_rewards=before + amounts)


def response_lengths(batch: Batch) -> Tensor:
    """``[N]`` tokens after the prompt, observations included."""
    return batch.lengths - batch.mask.int().argmax(1)


def length_penalties(lengths: Tensor, limit: int, penalty_tokens: int) -> Tensor:
    """The soft overlong penalty of DAPO (arXiv 2503.14476, equation 13).

        0 up to limit - penalty_tokens, then falling in a straight line to -1 at the limit

    Args:
      lengths: ``[N]`` int, tokens of each response.
      limit: Tokens that a response may have.
      penalty_tokens: Over how many tokens the penalty grows, at least 1.

    Example:
      >>> length_penalties(torch.tensor([80, 90, 95, 100]), 100, 10).tolist()
      [0.0, 0.0, -0.5, -1.0]
    """
    return ((limit - penalty_tokens - lengths) / penalty_tokens).clamp(-1, 0) + 0.0


@dataclass(frozen=True, kw_only=True)
class KLPenalty:
    """A penalty for moving away from the model that training started from."""

    coefficient: float = 0.0
    """Reward, or loss, for each nat. 0: no penalty, and no reference model is held."""

    estimator: Literal["k1", "k2", "k3"] = "k2"
    """Estimator of the divergence from the sampled token (see ``losses.kl_k1``)."""

    where: Literal["loss", "reward"] = "loss"
    """Add it to the loss, or take it off each token's reward."""

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < math.inf:
            raise SpanwiseError(f"a KL penalty needs coefficient >= 0, got {self.coefficient}")
        if self.coefficient and self.where == "loss" and self.estimator == "k1":
            raise SpanwiseError(
                "k1 in the loss has no gradient in expectation; use k2 or k3, or place it in "
                "the reward"
            )

    def estimates(self, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
        """``[N, T]`` estimates in nats, 0 where masked."""
        function = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}[self.estimator]
        return function(logprobs, reference_logprobs, mask)

    def in_reward(self, batch: Batch) -> Batch:
        """The batch with the penalty among the rewards of its tokens."""
        if not self.coefficient or self.where != "reward":
            return batch
        if batch.old_logprobs is None or batch.reference_logprobs is None:
            raise ValueError("a KL penalty needs log-probs of the policy and of the reference")
        nats = self.estimates(batch.old_logprobs, batch.reference_logprobs, batch.mask)
        return _paid(batch, -self.coefficient * nats)
