"""One optimizer step on one minibatch: forward and backward a micro-batch at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.microbatches import Microbatch, Microbatching
from spanwise.models.packing import TokenTree
from spanwise.models.sharding import whole
from spanwise.models.tree_attention import TrunkCost
from spanwise.runtime.distributed import Ranks


class Trainee(ABC):
    """A model with its optimizer and its loss: the policy, or the critic."""

    model: Any
    optimizer: torch.optim.Optimizer
    prefix: ClassVar[str] = ""
    """What the names of its metrics begin with."""

    @abstractmethod
    def cost(self) -> TrunkCost:
        """What a forward pass of its trunk costs."""

    @abstractmethod
    def loss(
        self,
        part: Batch,
        tree: TokenTree | None,
        metrics: MetricMeans,
        *,
        num_samples: int,
        num_tokens: int,
    ) -> Tensor:
        """The loss of some rows as their part of a minibatch's loss.

        Args:
          part: The rows, on the device of the model.
          tree: The same rows packed; None computes each by itself.
          metrics: Takes in what is worth keeping.
          num_samples: Rows of the whole minibatch.
          num_tokens: Model tokens of the whole minibatch.
        """


def optimizer_step(
    minibatch: Batch,
    trainees: Sequence[Trainee],
    metrics: MetricMeans,
    *,
    microbatching: Microbatching,
    max_gradient_norm: float,
    ranks: Ranks,
) -> bool:
    """Step every trainee once; a gradient that is not finite is counted, not applied.

    Returns:
      Whether every loss and gradient was finite.
    """
    counts_of = {
        "num_samples": minibatch.num_rows,
        "num_tokens": minibatch.num_model_tokens,
    }
    totals = torch.zeros(len(trainees), dtype=torch.float64)
    for trainee in trainees:
        trainee.optimizer.zero_grad(set_to_none=True)
    device = next(trainees[0].model.parameters()).device
    for micro, counts in microbatching(minibatch, trainees[0].cost(), ranks):
        part, tree = minibatch.take(micro.rows).to(device), micro.tree_on(device)
        kept = metrics if counts else MetricMeans()
        kept.add(_packing_metrics(micro, part), weight=int(part.lengths.sum()))
        for number, trainee in enumerate(trainees):
            loss = counts * trainee.loss(part, tree, kept, **counts_of)
            loss.backward()
            totals[number] += float(loss.detach())
    ranks.sum(totals)
    for trainee in trainees:
        ranks.sum_gradients(trainee.model.parameters())
    step_metrics = metrics if ranks.is_main else MetricMeans()  # every rank has the same
    finite = [
        _apply(trainee, loss, max_gradient_norm, step_metrics)
        for trainee, loss in zip(trainees, totals.tolist(), strict=True)
    ]
    return all(finite)


def _apply(trainee: Trainee, loss: float, max_gradient_norm: float, metrics: MetricMeans) -> bool:
    norm = torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), max_gradient_norm)
    norm, prefix = float(whole(norm)), trainee.prefix
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        trainee.optimizer.step()
        metrics.add({f"{prefix}loss": loss, f"{prefix}gradient_norm": norm})
    metrics.add({f"{prefix}skipped_steps": float(not finite)})
    return finite


def _packing_metrics(micro: Microbatch, part: Batch) -> dict[str, float]:
    """Tokens that the model computed for each token of the rows, and whether they were packed."""
    computed = micro.num_tokens / int(part.lengths.sum())
    return {"computed_to_total": computed, "packed": float(micro.tree is not None)}
