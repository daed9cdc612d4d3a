"""The copy of the policy that an engine in this process samples from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from spanwise.models.lora import copy_trainable
from spanwise.models.sharding import whole


def sampling_copy(model: Any, mesh: DeviceMesh | None, *, apart: bool = False) -> Any:
    """A policy that stays whole when ``model`` is split; without need for a copy, ``model``.

    A policy trained while it is sampled from, ``apart``, needs one even where nothing is split.
    """
    if mesh is None:
        return copy_trainable(model).requires_grad_(False) if apart else model
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def refresh(sampled: Any, model: Any) -> None:
    """Copy the policy's trained weights to its ``sampling_copy``; every process has to call it."""
    if sampled is model:
        return
    targets = dict(sampled.named_parameters())
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            targets[name].copy_(whole(weight))
