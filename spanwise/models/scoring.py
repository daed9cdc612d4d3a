"""Log-probs and entropies of given tokens under a model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanwise.errors import SpanwiseError
from spanwise.models.logprobs import logprobs_and_entropies
from spanwise.models.packing import TokenTree
from spanwise.models.sharding import gathered
from spanwise.models.tree_attention import hidden_states


class Scores(NamedTuple):
    """What a model says of each token of a batch; 0 where ``mask`` is False."""

    logprobs: Tensor
    """``[N, T]``, log-prob of the token itself; float32, or float64 from such a model."""

    entropies: Tensor
    """``[N, T]``, entropy in nats of the distribution it was drawn from."""


def token_scores(
    model: Any, tokens: Tensor, mask: Tensor, lengths: Tensor, tree: TokenTree | None = None
) -> Scores:
    """Score the model tokens of right-padded rows, at temperature 1.

    The vocabulary is looked at only where a model token follows, and there for a few tokens
    at a time, so that the logits of a whole batch never exist at once.

    Args:
      model: A causal language model of transformers.
      tokens: ``[N, T]`` int64, right-padded.
      mask: ``[N, T]`` bool, True on the tokens to score; never on the first of a row.
      lengths: ``[N]`` int64, tokens before the padding.
      tree: The same rows packed: each token that they share is then scored once.

    Returns:
      ``Scores`` on the device of ``tokens``; both carry the gradient.

    Raises:
      ValueError: if ``mask`` is True on a row's first token, which nothing predicts, or the
        model's output layer is not a linear one.
    """
    return gathered(_token_scores, model, tokens, mask, lengths, tree)


def _token_scores(
    model: Any, tokens: Tensor, mask: Tensor, lengths: Tensor, tree: TokenTree | None
) -> Scores:
    if bool(mask[:, 0].any()):
        raise SpanwiseError("the first token of a row has no prediction; it cannot be scored")
    hidden = hidden_states(model.base_model, tokens, lengths, tree)
    rows, columns = mask.nonzero(as_tuple=True)
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise SpanwiseError(
            f"log-probs are computed from a linear output layer, and {type(model).__name__} "
            f"has a {type(head).__name__}"
        )
    if tree is None:
        before, scored = hidden[rows * tokens.shape[1] + columns - 1], tokens[rows, columns]
        at = slice(None)
    else:
        unique, at = tree.index[rows, columns].unique(return_inverse=True)
        before, scored = hidden[tree.parents[unique]], tree.tokens[unique]
    picked, entropies = logprobs_and_entropies(before, head.weight, scored, bias=head.bias)
    blank = picked.new_zeros(tokens.shape)
    return Scores(
        logprobs=blank.index_put((rows, columns), picked[at]),
        entropies=blank.index_put((rows, columns), entropies[at]),
    )
