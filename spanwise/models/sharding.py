"""A model split over processes by FSDP2, and its weights gathered again, one at a time.

Each process holds a part of every weight, and of its gradient and its optimizer state. The
weights of a layer are gathered while it is computed; gradients are summed, not averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
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
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def shard(model: Any, mesh: DeviceMesh | None) -> None:
    """Split a model over the processes of a mesh, if there is one; its parameters are replaced."""
    if mesh is None:
        return
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
    """The whole of a tensor that may be split; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors that may be split; every process has to call it.

    They are gathered one after another, so that a process without ``keep``, whose result is empty,
    never holds more than one whole tensor. Split tensors come on the CPU, others where they were;
    one with two names, such as a tied weight, keeps both.
    """
    gathered_tensors: dict[int, Tensor] = {}
    for tensor in {id(tensor): tensor for tensor in tensors.values()}.values():
        full = whole(tensor.detach())
        if keep:
            gathered_tensors[id(tensor)] = full.cpu() if isinstance(tensor, DTensor) else full
        del full
    return {name: gathered_tensors[id(tensor)] for name, tensor in tensors.items()} if keep else {}
