"""The entropy of a model's next-token distribution, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanwise.losses import logprobs_and_entropies


def token_entropies(model: Any, tokens: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """The entropy of the distribution that each model token was drawn from.

        H_t = - sum over the vocabulary of p log p

    ``scoring.token_scores`` gives the same numbers without a gradient, which few updates
    need. This is a forward pass of its own.

    Args:
      model: A causal language model of transformers.
      tokens: ``[N, T]`` int64, right-padded.
      mask: ``[N, T]`` bool, True on the tokens to score; never on the first of a row.
      lengths: ``[N]`` int64, tokens before the padding.

    Returns:
      ``[N, T]`` in nats, float32 or wider, 0 where masked.
    """
    attention = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    hidden = model.base_model(
        input_ids=tokens, attention_mask=attention.long(), use_cache=False
    ).last_hidden_state
    rows, columns = mask.nonzero(as_tuple=True)
    head = model.get_output_embeddings()
    _, entropies = logprobs_and_entropies(
        hidden[rows, columns - 1], head.weight, tokens[rows, columns], bias=head.bias
    )
    return entropies.new_zeros(tokens.shape).index_put((rows, columns), entropies)
