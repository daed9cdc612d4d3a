"""What the models say of a batch before it is trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.learn.microbatches import Microbatching
from spanwise.models.critic import ValueModel
from spanwise.models.scoring import token_scores
from spanwise.models.tree_attention import TrunkCost
from spanwise.runtime.distributed import ALONE, Ranks


@torch.no_grad()
def score_batch(
    batch: Batch,
    policy: Any,
    *,
    critic: ValueModel | None = None,
    reference: Any = None,
    microbatching: Microbatching,
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
        scores = token_scores(policy, *inputs, tree)
        keep("old_logprobs", rows, scores.logprobs)
        keep("token_entropies", rows, scores.entropies)
        if reference is not None:
            keep("reference_logprobs", rows, token_scores(reference, *inputs, tree).logprobs)
        if critic is not None:
            predicted = critic(*inputs, scores.logprobs, tree)
            keep("values", rows, predicted.values)
            keep("end_values", rows, predicted.end_values)
    # Each row was scored by one rank and is 0 in the others.
    return replace(batch, **{name: ranks.sum(columns[name]) for name in sorted(columns)})
