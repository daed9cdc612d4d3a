"""A trial whether a model computes packed rows as it computes rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.errors import one_line
from spanwise.models.critic import ValueModel
from spanwise.models.packing import TokenTree, sorted_rows, token_tree
from spanwise.models.scoring import token_scores
from spanwise.models.sharding import gathered
from spanwise.models.tree_attention import why_not_packed

MOST_ROWS = 8


@torch.no_grad()
def packing_fault(
    model: Any, batch: Batch, *, critic: ValueModel | None = None, budget: int
) -> str | None:
    """The reason not to pack the rows of a batch, if there is one.

    A few rows that lie next to each other in order, and so begin alike, go through policy and
    critic both ways. The figures may differ by the square root of the precision's step: far
    more than rounding, far less than what a token changes that is seen or not.
    The critic's hidden states are compared, for its head starts at 0. ``budget`` is the number
    of tokens to try; two rows are tried in any case.
    """
    if (reason := why_not_packed(model)) is not None:
        return reason
    device = next(model.parameters()).device
    order = sorted_rows(batch.tokens, batch.lengths)[:MOST_ROWS]
    order = order[: max(2, budget // int(batch.lengths[order].max()))]
    width = int(batch.lengths[order].max())
    tokens, mask = batch.tokens[order, :width].to(device), batch.mask[order, :width].to(device)
    lengths = batch.lengths[order].to(device)
    tree = token_tree(tokens, lengths).to(device)

    def logprobs(tree: TokenTree | None) -> Tensor:
        return token_scores(model, tokens, mask, lengths, tree).logprobs

    def hidden(tree: TokenTree | None) -> Tensor:
        return gathered(_hidden, critic, tokens, lengths, tree)

    tried = [(type(model).__name__, "log-probs", logprobs), ("the critic", "hidden states", hidden)]
    tolerance = torch.finfo(next(model.parameters()).dtype).eps ** 0.5
    for name, what, of_rows in tried if critic is not None else tried[:1]:
        expected = of_rows(None)
        try:
            found = of_rows(tree)
        except Exception as error:  # a model that is not made for it may raise anything
            return f"{name} does not run over packed rows ({one_line(error)})"
        error = float((found - expected).abs().mean() / expected.abs().mean().clamp(min=1e-9))
        if not error <= tolerance:
            return f"{name} gives other {what} for packed rows (by {error:.2g} of their size)"
    return None


def _hidden(critic: ValueModel, tokens: Tensor, lengths: Tensor, tree: TokenTree | None) -> Tensor:
    """Hidden states of all tokens before the padding."""
    inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    found = critic.hidden(tokens, lengths, tree)
    return found[inside.flatten()] if tree is None else found[tree.index[inside]]
