"""Micro-batches: rows of like length, or packed by what they share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.learn.packing_check import packing_fault
from spanwise.models.critic import ValueModel
from spanwise.models.packing import (
    BLOCK_PAIRS,
    TokenTree,
    budget_cuts,
    even_cuts,
    shared_lengths,
    sorted_rows,
    token_tree,
)
from spanwise.models.tree_attention import TrunkCost
from spanwise.runtime.distributed import Ranks, balanced

MIN_PACKING_GAIN = 0.95
"""Rows are packed if that costs less than this share; the estimate is no better than so."""


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Some rows of a batch, by number."""

    rows: Tensor
    """``[n]`` int64."""

    tree: TokenTree | None
    """The same rows packed, cut to the longest of them; None computes each by itself."""

    num_tokens: int
    """Tokens that the model computes, padding included."""

    num_pairs: int

    def tree_on(self, device: torch.device) -> TokenTree | None:
        """The packed rows on the device that computes them."""
        return None if self.tree is None else self.tree.to(device)


@dataclass(frozen=True, kw_only=True)
class Microbatching:
    """Division of the rows of a batch by a budget of computed tokens, packed or not."""

    budget: int
    """Computed tokens of one micro-batch."""

    packed: bool
    """True if rows that begin alike may be packed."""

    def __call__(
        self, batch: Batch, cost: TrunkCost, ranks: Ranks
    ) -> Iterator[tuple[Microbatch, bool]]:
        """This process's micro-batches; False with one that another process counts."""
        parts = microbatches(
            batch.tokens,
            batch.lengths,
            budget=self.budget,
            cost=cost if self.packed else None,
            num_ranks=ranks.size,
        )
        for number, counts in ranks.assign([cost(p.num_tokens, p.num_pairs) for p in parts]):
            yield parts[number], counts

    def checked(self, policy: Any, batch: Batch, critic: ValueModel | None) -> Microbatching:
        """The same, or without packing and with a warning if a model cannot be packed.

        Args:
          policy: The policy.
          batch: Rows on which packing is tried (see ``packing_fault``).
          critic: Tried too, if there is one.
        """
        if not self.packed:
            return self
        fault = packing_fault(policy, batch, critic=critic, budget=self.budget)
        if fault is None:
            return self
        warnings.warn(
            f"training on plain rows, shared tokens are recomputed: {fault}", stacklevel=2
        )
        return replace(self, packed=False)


def microbatches(
    tokens: Tensor, lengths: Tensor, *, budget: int, cost: TrunkCost | None, num_ranks: int = 1
) -> list[Microbatch]:
    """Split rows into parts within a budget of computed tokens, in the cheaper of two ways.
    ``tokens`` is ``[N, T]`` int64, right-padded, ``lengths`` ``[N]`` int64. A row that is longer
    than the budget stands alone; without a ``cost`` nothing is packed. Parts are small enough
    that each of ``num_ranks`` processes has something to do.
    """
    plain = list(_row_parts(lengths, min(budget, math.ceil(int(lengths.sum()) / num_ranks))))
    if cost is None:
        return plain
    on_cpu, long = tokens.cpu(), lengths.cpu()
    order = sorted_rows(on_cpu, long)
    shared = shared_lengths(on_cpu[order], long[order])
    cuts = budget_cuts(shared, long[order], budget=budget)
    if len(cuts) < num_ranks:
        cuts = even_cuts(shared, long[order], most_parts=num_ranks)
    packed_tokens = int((long[order] - shared).sum() + sum(shared[c.start] for c in cuts))
    limit = MIN_PACKING_GAIN * _time(plain, cost, num_ranks)
    if cost(packed_tokens, BLOCK_PAIRS * len(cuts)) / num_ranks >= limit:  # at least that long
        return plain
    packed = [_packed(on_cpu, long, order[cut], tokens.device) for cut in cuts]
    return packed if _time(packed, cost, num_ranks) < limit else plain


def _row_parts(lengths: Tensor, budget: int) -> Iterator[Microbatch]:
    """Rows of like length together, each padded to the longest."""
    chosen: list[int] = []
    width = 0

    def part() -> Microbatch:
        return Microbatch(
            rows=torch.tensor(chosen, device=lengths.device),
            tree=None,
            num_tokens=len(chosen) * width,
            num_pairs=len(chosen) * width**2,
        )

    for row in lengths.argsort(stable=True).tolist():
        longest = int(lengths[row])
        if chosen and (len(chosen) + 1) * longest > budget:
            yield part()
            chosen = []
        chosen.append(row)
        width = longest
    yield part()


def _packed(tokens: Tensor, lengths: Tensor, rows: Tensor, device: torch.device) -> Microbatch:
    width = int(lengths[rows].max())
    tree = token_tree(tokens[rows, :width], lengths[rows])
    return Microbatch(
        rows=rows.to(device),
        tree=tree.to(device),
        num_tokens=len(tree.tokens),
        num_pairs=tree.num_pairs,
    )


def _time(parts: list[Microbatch], cost: TrunkCost, num_ranks: int) -> float:
    """Cost of the most laden rank."""
    costs = [cost(part.num_tokens, part.num_pairs) for part in parts]
    return max(sum(costs[number] for number in share) for share in balanced(costs, num_ranks))
