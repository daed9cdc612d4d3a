"""What a model does to its logits behind the output layer."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from spanwise.errors import SpanwiseError

_FACTORS: WeakKeyDictionary[Any, float] = WeakKeyDictionary()


def logit_factor(model: Any) -> float:
    """The factor between what the output layer gives and the model's logits; 1 for most.

    Granite divides them, Cohere multiplies them, and no two configurations name it alike. So
    the model is run once on one token, with known numbers in place of its output layer's.

    Args:
      model: A causal language model of transformers. Of a split one, every process has to ask.

    Raises:
      SpanwiseError: if the output layer is not linear, or what follows is no factor, such as
        the soft cap of Gemma 2.
    """
    if model not in _FACTORS:
        _FACTORS[model] = _measured(model)
    return _FACTORS[model]


@torch.no_grad()
def _measured(model: Any) -> float:
    head, name = model.get_output_embeddings(), type(model).__name__
    if not isinstance(head, torch.nn.Linear):
        raise SpanwiseError(
            f"log-probs are computed from a linear output layer, and {name} has a "
            f"{type(head).__name__}"
        )
    device = next(model.parameters()).device
    ramp = torch.linspace(-100, 100, head.out_features, device=device)

    def known_logits(layer: object, inputs: object, output: Tensor) -> Tensor:
        return ramp.expand_as(output)

    hook = head.register_forward_hook(known_logits)
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        logits = model(input_ids=token, use_cache=False).logits[0, -1].float()
    finally:
        hook.remove()
    factor = float((logits @ ramp) / (ramp @ ramp))
    if not torch.allclose(logits, factor * ramp, rtol=1e-2, atol=1e-3):
        raise SpanwiseError(
            f"{name} changes its logits behind the output layer, and not by a factor (a soft "
            "cap?): log-probs would be those of another model; choose one without"
        )
    return 1.0 if abs(factor - 1) < 1e-5 else factor
