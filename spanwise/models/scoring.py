"""Log-probs and entropies of given tokens under a model, at a temperature."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from spanwise.errors import SpanwiseError
from spanwise.models.logit_factor import logit_factor
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
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    lengths: Tensor,
    tree: TokenTree | None = None,
    *,
    temperature: float = 1.0,
) -> Scores:
    """Score the model tokens of right-padded rows.

    The vocabulary is looked at only where a model token follows, and there for a few tokens
    at a time, so that the logits of a whole batch never exist at once.

    Args:
      model: A causal language model of transformers.
      tokens: ``[N, T]`` int64, right-padded.
      mask: ``[N, T]`` bool, True on the tokens to score; never on the first of a row.
      lengths: ``[N]`` int64, tokens before the padding.
      tree: The same rows packed: each token that they share is then scored once.
      temperature: What the model's logits are divided by, above 0: with that at which the
        tokens were drawn, the policy that is scored is the one they were drawn from.

    Returns:
      ``Scores`` on the device of ``tokens``; both carry the gradient.

    Raises:
      ValueError: if ``mask`` is True on a row's first token, which nothing predicts, or the
        model's logits are not its hidden states times one matrix (``logit_factor``).
    """
    scale = logit_factor(model) / temperature
    return gathered(_token_scores, model, tokens, mask, lengths, tree, scale)


def _token_scores(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    lengths: Tensor,
    tree: TokenTree | None,
    scale: float,
) -> Scores:
    if bool(mask[:, 0].any()):
        raise SpanwiseError("the first token of a row has no prediction; it cannot be scored")
    head = model.get_output_embeddings()
    hidden = hidden_states(model.base_model, tokens, lengths, tree)
    rows, columns = mask.nonzero(as_tuple=True)
    if tree is None:
        before, scored = hidden[rows * tokens.shape[1] + columns - 1], tokens[rows, columns]
        at = slice(None)
    else:
        unique, at = tree.index[rows, columns].unique(return_inverse=True)
        before, scored = hidden[tree.parents[unique]], tree.tokens[unique]
    picked, entropies = logprobs_and_entropies(
        before, head.weight, scored, bias=head.bias, scale=scale
    )
    blank = picked.new_zeros(tokens.shape)
    return Scores(
        logprobs=blank.index_put((rows, columns), picked[at]),
        entropies=blank.index_put((rows, columns), entropies[at]),
    )
