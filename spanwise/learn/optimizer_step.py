"""One optimizer step on one minibatch: forward and backward a micro-batch at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.microbatches import Microbatching
from spanwise.models.packing import TokenTree
from spanwise.models.sharding import whole
from spanwise.models.tree_attention import TrunkCost
from spanwise.runtime.distributed import Ranks


class Counts(NamedTuple):
    """The size of a minibatch, by which its losses are divided."""

    num_samples: int
    num_tokens: int


class Trainee(ABC):
    """A model with its optimizer and its loss: the policy, or the critic."""

    model: Any
    optimizer: torch.optim.Optimizer
    prefix: ClassVar[str] = ""
    """Prefix of the names of its metrics."""

    @abstractmethod
    def cost(self) -> TrunkCost:
        """The cost of a forward pass of its trunk."""

    @abstractmethod
    def loss(
        self, part: Batch, tree: TokenTree | None, metrics: MetricMeans, counts: Counts
    ) -> Tensor:
        """The loss of some rows as their part of a minibatch's loss.

        Args:
          part: The rows, on the device of the model.
          tree: The same rows packed; None computes each by itself.
          metrics: Takes in what is worth keeping.
          counts: Rows and model tokens of the whole minibatch.
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
    size = Counts(minibatch.num_rows, minibatch.num_model_tokens)
    totals = torch.zeros(len(trainees), dtype=torch.float64)
    for trainee in trainees:
        trainee.optimizer.zero_grad(set_to_none=True)
    device = next(trainees[0].model.parameters()).device
    for micro, counts in microbatching(minibatch, trainees[0].cost(), ranks):
        part, tree = minibatch.take(micro.rows).to(device), micro.tree_on(device)
        kept = metrics if counts else MetricMeans()
        row_tokens = int(part.lengths.sum())
        packed = {
            "computed_to_total": micro.num_tokens / row_tokens,
            "packed": micro.tree is not None,
        }
        kept.add(packed, weight=row_tokens)
        for number, trainee in enumerate(trainees):
            loss = counts * trainee.loss(part, tree, kept, size)
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
