"""How a model's layers run: compiled, and with activations computed twice to save memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from spanwise.errors import SpanwiseError


def compile_layers(model: torch.nn.Module) -> None:
    """Run each decoder layer through ``torch.compile``, once for all shapes.

    Layer by layer, so that one compilation serves all layers; masks and the output layer
    stay as they are. A copy of the model is not compiled: see ``match_compilation``.
    """
    for layer in _layers(model, "compiled"):
        layer.compile(dynamic=True)


def checkpoint_gradients(model: Any) -> None:
    """Keep only the inputs of each decoder layer for the backward pass, and compute it again.

    Dropout stays off: only the layer itself is told that it trains, not what is in it.
    """
    layers = _layers(model, "checkpointed")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        layer.training = True


def match_compilation(model: torch.nn.Module, copied: torch.nn.Module) -> None:
    """Compile the layers of a copy if the model's are."""
    if any(layer._compiled_call_impl is not None for layer in model.modules()):
        compile_layers(copied)


def _layers(model: torch.nn.Module, how: str) -> list[GradientCheckpointingLayer]:
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise SpanwiseError(f"the layers of {type(model).__name__} cannot be {how}; leave that out")
    return layers
