"""The policy as it is trained: its optimizer and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.objective import Objective
from spanwise.learn.optimizer_step import Trainee
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.models.packing import TokenTree
from spanwise.models.scoring import token_scores
from spanwise.models.tree_attention import TrunkCost
from spanwise.spans import span_lengths


@dataclass(kw_only=True)
class TrainedPolicy(Trainee):
    """The policy with its optimizer."""

    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    kl: KLPenalty | None = None
    """The penalty that is part of the loss, if there is one."""

    def cost(self) -> TrunkCost:
        return TrunkCost.of(self.model)

    def loss(
        self,
        part: Batch,
        tree: TokenTree | None,
        metrics: MetricMeans,
        *,
        num_samples: int,
        num_tokens: int,
    ) -> Tensor:
        scores = token_scores(self.model, part.tokens, part.mask, part.lengths, tree)
        loss, of_loss = self.objective(
            scores.logprobs,
            part,
            num_samples=num_samples,
            num_tokens=num_tokens,
            entropies=scores.entropies,
            kl=self.kl,
        )
        assert part.ratio_spans is not None
        of_tokens, of_spans = part.num_model_tokens, _num_spans(part.ratio_spans)
        for name, metric in of_loss.items():
            by_span = name.startswith("clip_frac/span")
            metrics.add({name: metric}, weight=of_spans if by_span else of_tokens)
        return loss


def _num_spans(spans: Tensor) -> float:
    """Number of spans of some rows; each token stands for its share of its span."""
    lengths = span_lengths(spans)
    return float((1 / lengths[lengths > 0].double()).sum())
