"""Rows that begin alike, packed so that each shared token stands once.

Branches of one tree, and the rollouts of one prompt, begin with the same tokens. A causal model
computes the same thing for a token wherever the tokens up to it are the same, so each such
token is kept once, with its parent; rows are read off the result by index. Nothing here knows
of nodes or groups: what is shared is found from the tokens.

Legend: N rows, T their width, P packed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASKED_PAIR = 1.2
"""Cost of a pair of tokens under a mask, against one of a row by itself; on a CPU."""

KEY_PAIRS = 16
"""Cost of fetching one key and value for a stretch, in pairs."""

BLOCK_PAIRS = 20_000
"""Cost of one more block beside that, in pairs."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Stretches of like length whose attention is computed at once, padded.

    A stretch is what one row adds to the rows before it; it attends to that row's path.
    """

    queries: Tensor
    """``[n, S]`` int64, packed numbers of the tokens of each stretch; the last is repeated."""

    keys: Tensor
    """``[n, K]`` int64, packed numbers of each path from its root."""

    seen: Tensor
    """``[n, S]`` int64, keys that each query attends to: the first so many of its path."""

    def to(self, device: torch.device) -> Block:
        return Block(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @cached_property
    def mask(self) -> Tensor:
        """``[n, 1, S, K]`` float32, 0 where seen and -inf elsewhere; made once, for all layers.

        Numbers, not truth values: the CPU's kernel then skips a conversion in each layer.
        """
        hidden = torch.arange(self.keys.shape[1], device=self.seen.device) >= self.seen[..., None]
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return mask[:, None]


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """Packed rows: a forest of tokens in preorder, so that a subtree is a stretch of them."""

    tokens: Tensor
    """``[P]`` int64."""

    positions: Tensor
    """``[P]`` int64, tokens before it on its path."""

    parents: Tensor
    """``[P]`` int64, the token before it on its path; -1 for a root."""

    ends: Tensor
    """``[P]`` int64, the end of its subtree: token q sees token k if ``k <= q < ends[k]``."""

    index: Tensor
    """``[N, T]`` int64, where each token of the rows stands; 0 where padded."""

    blocks: tuple[Block, ...]

    order: Tensor
    """``[P]`` int64, where each token stands among the queries of all blocks, flattened."""

    def to(self, device: torch.device) -> TokenTree:
        blocks = tuple(block.to(device) for block in self.blocks)
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "blocks"}
        return TokenTree(**{k: v.to(device) for k, v in tensors.items()}, blocks=blocks)

    @property
    def num_pairs(self) -> int:
        """Cost of attention, in pairs of tokens of a row by itself."""
        return sum(
            _block_pairs(len(b.queries), b.queries.shape[1], b.keys.shape[1]) for b in self.blocks
        )

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether one token attends to another, by their numbers, broadcast."""
        return (key <= query) & (query < self.ends[key])

    @cached_property
    def block_mask(self) -> Any:
        """The same as FlexAttention is to have it; made once, for all layers and models."""
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self.sees(query, key)

        size = len(self.tokens)
        return create_block_mask(sees, None, None, size, size, device=self.ends.device)


def token_tree(tokens: Tensor, lengths: Tensor) -> TokenTree:
    """Pack right-padded rows.

    Rows in lexicographic order share with the one before them all that they share with any
    earlier one; what a row adds is appended. A token's place is then that of the last row so
    far that added a token at its position.

    Args:
      tokens: ``[N, T]`` int64, right-padded.
      lengths: ``[N]`` int64, tokens before the padding, at least 1.

    Returns:
      A ``TokenTree`` on the CPU.

    Example:
      >>> tree = token_tree(torch.tensor([[5, 6, 7], [5, 6, 8], [5, 9, 0]]),
      ...                   torch.tensor([3, 3, 2]))
      >>> tree.tokens.tolist(), tree.parents.tolist(), tree.ends.tolist()
      ([5, 6, 7, 8, 9], [-1, 0, 1, 1, 0], [5, 4, 3, 4, 5])
      >>> tree.index.tolist(), tree.positions.tolist()
      ([[0, 1, 2], [0, 1, 3], [0, 4, 0]], [0, 1, 2, 2, 1])
    """
    tokens, lengths = tokens.cpu(), lengths.cpu()
    order = sorted_rows(tokens, lengths)
    ordered, long = tokens[order], lengths[order]
    shared = shared_lengths(ordered, long)
    added = long - shared
    starts = added.cumsum(0) - added
    column = torch.arange(tokens.shape[1])
    adds = (column >= shared[:, None]) & (column < long[:, None])
    row = torch.arange(len(order))[:, None]
    owner = torch.where(column >= shared[:, None], row, 0).cummax(0).values
    index = torch.where(column < long[:, None], starts[owner] + column - shared[owner], 0)
    parents = torch.nn.functional.pad(index[:, :-1], (1, 0), value=-1)[adds]
    positions = column.expand(len(order), -1)[adds]
    blocks, places = _blocks(index, starts, added, long)
    return TokenTree(
        tokens=ordered[adds],
        positions=positions,
        parents=parents,
        ends=_subtree_ends(positions),
        index=torch.empty_like(index).index_copy_(0, order, index),
        blocks=blocks,
        order=places,
    )


def sorted_rows(tokens: Tensor, lengths: Tensor) -> Tensor:
    """``[N]`` row numbers in lexicographic order, a row before those it is the beginning of."""
    rows = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))


def shared_lengths(tokens: Tensor, lengths: Tensor) -> Tensor:
    """``[N]`` int64, how many first tokens each row shares with the row above it.

    Example:
      >>> shared_lengths(torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([2, 3])).tolist()
      [0, 2]
    """
    alike = (tokens[1:] == tokens[:-1]).long().cumprod(1).sum(1)
    shorter = torch.minimum(lengths[1:], lengths[:-1])
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.minimum(alike, shorter)])


def budget_cuts(shared: Tensor, lengths: Tensor, *, budget: int) -> list[slice]:
    """Cut rows in lexicographic order into parts of ``budget`` packed tokens or fewer.

    ``shared`` ``[N]`` int64, from ``shared_lengths``, and ``lengths`` ``[N]`` int64 describe them.

    A cut before a row repeats what that row shares with the one above it, so a part costs

        lengths[first] + the sum of (lengths - shared) over its other rows

    and the cuts with the least repeated tokens are found by dynamic programming, of those the
    ones with the fewest parts. A row that is longer than the budget stands alone.

    Example:
      Three rows of 4 tokens; the last two share 3 of them.

      >>> budget_cuts(torch.tensor([0, 1, 3]), torch.tensor([4, 4, 4]), budget=7)
      [slice(0, 1, None), slice(1, 3, None)]
    """
    repeats, long = shared.numpy(), lengths.numpy()
    num_rows, added = len(long), (lengths - shared).cumsum(0).numpy()
    if num_rows and long[0] + added[-1] - added[0] <= budget:
        return [slice(0, num_rows)]
    tails = long - added  # what a part with this first row has beside the sum to its end
    best = np.zeros(num_rows + 1, dtype=np.int64)  # repeated tokens, then parts, of first rows
    begins, low = [0], 0
    for stop in range(1, num_rows + 1):
        while low < stop - 1 and added[stop - 1] - added[low] > budget:
            low += 1
        costs = best[low:stop] + repeats[low:stop] * (num_rows + 1) + 1
        fits = tails[low:stop] + added[stop - 1] <= budget
        fits[-1] = True
        first = int(np.where(fits, costs, np.iinfo(np.int64).max).argmin())
        best[stop] = costs[first]
        begins.append(low + first)
    cuts: list[slice] = []
    stop = num_rows
    while stop:
        cuts.append(slice(begins[stop], stop))
        stop = begins[stop]
    return cuts[::-1]


def even_cuts(shared: Tensor, lengths: Tensor, *, most_parts: int) -> list[slice]:
    """Cut rows, as ``budget_cuts``, into ``most_parts`` or fewer, the largest as small as can be.

    Example:
      As for ``budget_cuts``; of two parts the largest has 5 tokens at least.

      >>> even_cuts(torch.tensor([0, 1, 3]), torch.tensor([4, 4, 4]), most_parts=2)
      [slice(0, 1, None), slice(1, 3, None)]
    """
    long, added = lengths.tolist(), (lengths - shared).tolist()

    def filled(budget: int) -> list[slice]:
        """Each part up to the budget; there are no fewer parts within it."""
        begins, size = [0], long[0]
        for row in range(1, len(long)):
            size += added[row]
            if size > budget:
                begins.append(row)
                size = long[row]
        return [slice(a, b) for a, b in zip(begins, [*begins[1:], len(long)], strict=True)]

    low, high = max(long) - 1, sum(added)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(filled(middle)) <= most_parts else (middle, high)
    return filled(high)


def _subtree_ends(positions: Tensor) -> Tensor:
    """``[P]``: in preorder a subtree ends at the next token that is no deeper than its root."""
    ends = [0] * len(positions)
    open_tokens: list[int] = []
    depths = positions.tolist()
    for number, depth in enumerate(depths):
        while open_tokens and depths[open_tokens[-1]] >= depth:
            ends[open_tokens.pop()] = number
        open_tokens.append(number)
    for number in open_tokens:
        ends[number] = len(depths)
    return torch.tensor(ends)


def _blocks(
    index: Tensor, starts: Tensor, added: Tensor, lengths: Tensor
) -> tuple[tuple[Block, ...], Tensor]:
    """The stretches as blocks of like length, and where each token stands among the queries."""
    adding = added.nonzero().squeeze(1)
    by_size = adding[added[adding].argsort(descending=True, stable=True)]
    blocks: list[Block] = []
    places = torch.empty(int(added.sum()), dtype=torch.int64)
    done = 0
    for part in _block_slices(added[by_size], lengths[by_size]):
        rows = by_size[part]
        width, long = int(added[rows].max()), int(lengths[rows].max())
        offset = torch.arange(width)
        real = offset < added[rows, None]
        offset = torch.minimum(offset, added[rows, None] - 1)
        queries = starts[rows, None] + offset
        places[queries[real]] = done + real.flatten().nonzero().squeeze(1)
        done += queries.numel()
        seen = (lengths - added)[rows, None] + offset + 1
        blocks.append(Block(queries=queries, keys=index[rows, :long], seen=seen))
    return tuple(blocks), places


def _block_pairs(num_stretches: int, num_queries: int, num_keys: int) -> int:
    """The cost of a block, padding included."""
    keys = num_stretches * num_keys
    return round(keys * (MASKED_PAIR * num_queries + KEY_PAIRS)) + BLOCK_PAIRS


def _block_slices(added: Tensor, lengths: Tensor) -> list[slice]:
    """Stretches in falling order of size, cut where padding costs more than another block."""
    sizes, longest = added.tolist(), lengths.tolist()
    edges = [i for i in range(len(sizes)) if i == 0 or sizes[i] != sizes[i - 1]]
    stops = [*edges[1:], len(sizes)]
    tops = [max(longest[a:b]) for a, b in zip(edges, stops, strict=True)]
    best, begins = [0], [0]
    for last, stop in enumerate(stops):
        top, choices = 0, list[tuple[int, int]]()
        for first in range(last, -1, -1):
            top = max(top, tops[first])
            pairs = _block_pairs(stop - edges[first], sizes[edges[first]], top)
            choices.append((best[first] + pairs, first))
        least, begin = min(choices)
        best.append(least)
        begins.append(begin)
    cuts: list[slice] = []
    last = len(stops)
    while last:
        cuts.append(slice(edges[begins[last]], stops[last - 1]))
        last = begins[last]
    return cuts[::-1]
