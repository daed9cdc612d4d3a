"""Log-probs and entropies of given tokens under a model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """What a model says of each token of a batch; 0 where ``mask`` is False."""

    logprobs: Tensor
    """``[N, T]``, log-prob of the token itself; float32, or float64 from such a model."""

    entropies: Tensor
    """``[N, T]``, entropy in nats of the distribution it was drawn from; detached."""


def token_scores(model: Any, tokens: Tensor, mask: Tensor, lengths: Tensor) -> Scores:
    """Score the model tokens of right-padded rows, at temperature 1.

    The vocabulary is looked at only where a model token follows, so that logits exist
    for those positions alone.

    Args:
      model: A causal language model of transformers.
      tokens: ``[N, T]`` int64, right-padded.
      mask: ``[N, T]`` bool, True on the tokens to score; never on the first of a row.
      lengths: ``[N]`` int64, tokens before the padding.

    Returns:
      ``Scores`` on the device of ``tokens``; ``logprobs`` carries the gradient.

    Raises:
      ValueError: if ``mask`` is True on a row's first token, which nothing predicts.
    """
    if bool(mask[:, 0].any()):
        raise ValueError("the first token of a row has no prediction; it cannot be scored")
    attention = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    hidden = model.base_model(
        input_ids=tokens, attention_mask=attention.long(), use_cache=False
    ).last_hidden_state
    rows, columns = mask.nonzero(as_tuple=True)
    logits = model.get_output_embeddings()(hidden[rows, columns - 1])
    precision = torch.promote_types(logits.dtype, torch.float32)
    all_logprobs = logits.to(precision).log_softmax(-1)
    picked = all_logprobs.gather(-1, tokens[rows, columns, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(all_logprobs.exp() * all_logprobs).sum(-1)
    blank = picked.new_zeros(tokens.shape)
    return Scores(
        logprobs=blank.index_put((rows, columns), picked),
        entropies=blank.index_put((rows, columns), entropy),
    )
