"""The disagreement of engine and trainer on log-probs: its metrics and its correction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from spanwise import losses
from spanwise.batch import Batch
from spanwise.errors import SpanwiseError
from spanwise.partitions import Partition, Token, Trajectory, Turn


@dataclass(frozen=True, kw_only=True)
class ImportanceCorrection:
    """A correction for tokens that were drawn from another distribution than the policy.

    The correction counts all that differs: kernels, precision, weights of a step before, and
    what ``top_p`` or ``top_k`` left out. It cannot bring back tokens that they never let be
    drawn. A temperature needs no correction: the policy is trained at it.
    """

    spans: Partition = Token()
    """Spans over which the importance ratio is a product."""

    tis_cap: float = math.inf
    """Largest importance ratio by which the loss of a span is weighted; ``inf``: no weights.
    One that is never reached, such as 1e9, gives the plain ratio."""

    rejection_bound: float = math.inf
    """Ratio above which, or below one over which, a span is left out of the loss."""

    def __post_init__(self) -> None:
        if not self.tis_cap > 0 or not self.rejection_bound >= 1:
            raise SpanwiseError(
                "importance.tis_cap must be above 0 and importance.rejection_bound at least 1, got "
                f"{self.tis_cap} and {self.rejection_bound}"
            )

    def bind(self, tokenizer: Any) -> ImportanceCorrection:
        """The same correction once its spans have looked up what they need."""
        return replace(self, spans=self.spans.bind(tokenizer))

    @property
    def corrects(self) -> bool:
        return math.isfinite(self.tis_cap) or math.isfinite(self.rejection_bound)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the importance of its tokens, for ``Objective.weights``.

        A span left out has weight 0. It still counts in the means that the loss is made of,
        so that dropping tokens never makes others weigh more.

        Args:
          batch: Scored by the trainer.
        """
        if not self.corrects:
            return batch
        assert batch.old_logprobs is not None
        at = self.spans(batch)
        importance = torch.ones_like(batch.old_logprobs)
        if math.isfinite(self.tis_cap):
            importance = losses.importance_weights(
                batch.old_logprobs, batch.sampling_logprobs, at, truncate=self.tis_cap
            )
        kept = losses.within_bound(
            batch.old_logprobs, batch.sampling_logprobs, at, bound=self.rejection_bound
        )
        return replace(batch, importance=torch.where(kept, importance, 0))

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Distances between engine and trainer, and the effect of the correction.

        Returns:
          Of the log-probs that tokens were drawn by, over model tokens: ``engine_mismatch``, the
          mean absolute difference; ``engine_mismatch_max``; ``engine_kl``, the mean of k3 and
          ``engine_kl_k1``, that of k1, two estimates of KL(engine || trainer) in nats a
          token; the extremes of the ratio trainer / engine by ``token``, ``turn`` and
          ``trajectory``. With a correction also ``importance/mean``, ``/max`` and
          ``/masked_share``.
        """
        assert batch.old_logprobs is not None
        mask, trainer, engine = batch.mask, batch.old_logprobs, batch.sampling_logprobs
        figures = {
            "engine_mismatch": (trainer - engine)[mask].abs().mean(),
            "engine_mismatch_max": (trainer - engine)[mask].abs().max(),
            "engine_kl": losses.kl_k3(engine, trainer, mask)[mask].mean(),
            "engine_kl_k1": losses.kl_k1(engine, trainer, mask)[mask].mean(),
        }
        kinds = {"token": Token(), "turn": Turn(), "trajectory": Trajectory()}
        for kind, partition in kinds.items():
            ratio = losses.importance_ratio(trainer, engine, partition(batch))[mask]
            figures[f"engine_ratio/{kind}_min"] = ratio.min()
            figures[f"engine_ratio/{kind}_max"] = ratio.max()
        if batch.importance is not None:
            importance = batch.importance[mask]
            figures["importance/mean"] = importance.mean()
            figures["importance/max"] = importance.max()
            figures["importance/masked_share"] = (importance == 0).float().mean()
        return {name: float(figure) for name, figure in figures.items()}
