"""The policy as an engine of this process samples from it: whole, and at rest."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from spanwise.models.lora import copy_trainable
from spanwise.models.sharding import whole


def sampling_copy(model: Any, mesh: DeviceMesh | None, *, apart: bool = False) -> Any:
    """A model that stays whole when ``model`` is split: itself if it is not going to be.

    Args:
      model: The policy, not split yet.
      mesh: The processes over which it is going to be split; None: it is not.
      apart: Whether it is trained while it is sampled from, which takes a copy in any case;
        frozen weights are shared if nothing is split.
    """
    if mesh is None:
        return copy_trainable(model).requires_grad_(False) if apart else model
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def refresh(sampled: Any, model: Any) -> None:
    """Bring a model from ``sampling_copy`` up to date; every process has to ask."""
    if sampled is model:
        return
    targets = dict(sampled.named_parameters())
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            targets[name].copy_(whole(weight))
