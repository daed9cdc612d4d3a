"""A model split over processes by FSDP2, and its weights put together again.

Each process holds a part of every weight, and of its gradient and its optimizer state. The
weights of a layer are gathered while it is computed; gradients are summed, not averaged.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from spanwise.models.lora import copy_trainable

T = TypeVar("T")


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Split a model in place, layer by layer; its parameters are others afterwards.

    Args:
      model: A model of transformers, or one that holds such a trunk.
      mesh: The processes, one dimension.
    """
    # Scores are views of larger tensors, and nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    kinds = {k for m in model.modules() for k in (getattr(m, "_no_split_modules", None) or ())}
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    if all(p.dtype.itemsize >= torch.float32.itemsize for p in model.parameters()):
        precision = MixedPrecisionPolicy()  # sums in the precision of the weights
    for layer in [m for m in model.modules() if type(m).__name__ in kinds]:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    # Gathered again for the backward pass: weights that stay gathered outlive an update.
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.run_gathered = MethodType(lambda self, function, *args: function(self, *args), model)
    register_fsdp_forward_method(model, "run_gathered")


def gathered(function: Callable[..., T], model: Any, *args: Any) -> T:
    """``function(model, *args)``, with the weights outside the layers gathered meanwhile.

    FSDP gathers weights when a model is called. What uses a part of one, such as its trunk or
    its head, is to be called through here; for a model that is not split it is a plain call.
    """
    run: Callable[..., T] | None = getattr(model, "run_gathered", None)
    return function(model, *args) if run is None else run(function, *args)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be split; every process has to ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, split: Tensor) -> Tensor:
    """This process's part of a whole tensor, split as another is."""
    if not isinstance(split, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(split.device), split.device_mesh, split.placements, src_data_rank=None
    )


@torch.no_grad()
def copy_whole(source: torch.nn.Module, to: torch.nn.Module) -> None:
    """Write the trained weights of a split model into an ordinary copy of it."""
    targets = dict(to.named_parameters())
    for name, weight in source.named_parameters():
        if weight.requires_grad:
            targets[name].copy_(whole(weight))


@torch.no_grad()
def scatter(source: torch.nn.Module, to: torch.nn.Module) -> None:
    """Write the trained weights of an ordinary model into a split one, each rank its part."""
    weights = dict(source.named_parameters())
    for name, part in to.named_parameters():
        if part.requires_grad:
            part.copy_(shard_like(weights[name], part))


def split(model: torch.nn.Module, mesh: DeviceMesh | None) -> None:
    """Split a model over the processes of a mesh, if there is one; build its optimizer after."""
    if mesh is not None:
        shard(model, mesh)


def copy_to_sample_from(model: Any, mesh: DeviceMesh | None, *, apart: bool = False) -> Any:
    """A model that stays whole when ``model`` is split: itself if it is not going to be.

    Args:
      model: Not split yet.
      mesh: Over which it is going to be split; None: it is not.
      apart: Have a copy in any case; frozen weights are shared if nothing is split.
    """
    if mesh is None:
        return copy_trainable(model).requires_grad_(False) if apart else model
    return copy.deepcopy(model).requires_grad_(False)


def refresh(whole_model: Any, model: Any) -> None:
    """Bring the model from ``copy_to_sample_from`` up to date."""
    if whole_model is not model:
        copy_whole(model, whole_model)
