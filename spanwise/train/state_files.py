"""The trained weights of a run and their optimizer state, in one file for each process.

A process writes the rows that it holds of each split tensor; the leading one also writes the
tensors that are not split. A tensor is read from the rows of all files, one after another, and
a process takes those that it now holds: any number of processes goes on from what any number
has written, and none ever holds more than its part. The files are safetensors, so that nothing
is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from spanwise.errors import SpanwiseError

WEIGHT = "weight"


def state_file(rank: int, size: int) -> str:
    """The name of a process's file.

    Example:
      >>> state_file(0, 2)
      'state-00001-of-00002.safetensors'
    """
    return f"state-{rank + 1:05d}-of-{size:05d}.safetensors"


def training_state(
    part: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Each trained weight of a model, and each tensor that its optimizer keeps for it.

    Returns:
      Tensors by name: ``part/weight's name/weight``, ``part/weight's name/exp_avg``, …
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _trained(model, optimizer):
        kept = {WEIGHT: parameter, **optimizer.state.get(parameter, {})}
        tensors |= {f"{part}/{name}/{key}": tensor.detach() for key, tensor in kept.items()}
    return tensors


def write_state(file: Path, tensors: Mapping[str, Tensor], *, leads: bool) -> None:
    """Write this process's part of some tensors.

    Args:
      file: The file, new.
      tensors: Split or whole tensors by name, the same names in every process.
      leads: Whether this process writes the whole ones.
    """
    own = {
        name: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).contiguous()
        for name, tensor in tensors.items()
        if leads or isinstance(tensor, DTensor)
    }
    save_file(own, file)


class StateFiles:
    """What all processes wrote, open for reading.

    Args:
      files: One of each process, in their order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._pieces: dict[str, dict[str, list[Any]]] = {}
        for file in files:
            opened: Any = safe_open(file, framework="pt")
            for label in opened.keys():  # noqa: SIM118
                name, _, key = label.rpartition("/")
                piece = opened.get_slice(label)
                self._pieces.setdefault(name, {}).setdefault(key, []).append(piece)

    @torch.no_grad()
    def load(self, part: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Bring a model's trained weights and their optimizer state to what was written.

        Raises:
          SpanwiseError: if the state is that of another model.
        """
        states: dict[int, dict[str, Tensor]] = {}
        for number, (name, parameter) in enumerate(_trained(model, optimizer)):
            label = f"{part}/{name}"
            pieces = {WEIGHT: [], **self._pieces.get(label, {})}
            found = {key: _read(label, pieces[key], parameter) for key in pieces}
            parameter.copy_(found.pop(WEIGHT))
            if found:
                states[number] = found
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})


def _trained(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The optimizer's parameters in its order, by their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter


def _read(label: str, pieces: Sequence[Any], parameter: Tensor) -> Tensor:
    """A tensor, split as the parameter is that it belongs to; a number as it is."""
    shapes = [piece.get_shape() for piece in pieces]
    if shapes == [[]]:
        return pieces[0][...]
    shape = [sum(rows for rows, *_ in shapes), *shapes[0][1:]] if shapes else None
    if shape != list(parameter.shape):
        raise SpanwiseError(f"{label} has the shape {list(parameter.shape)} here, {shape} there")
    start, stop = _rows(parameter)
    taken: list[Tensor] = []
    for piece, (rows, *_) in zip(pieces, shapes, strict=True):
        taken.append(piece[max(start, 0) : max(min(stop, rows), 0)])
        start, stop = start - rows, stop - rows
    local = torch.cat(taken).to(parameter.device)
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _rows(parameter: Tensor) -> tuple[int, int]:
    """The rows of a parameter that this process holds; FSDP cuts along the first dimension."""
    rows = parameter.shape[0]
    if not isinstance(parameter, DTensor):
        return 0, rows
    each = -(-rows // parameter.device_mesh.size())
    start = min(each * parameter.device_mesh.get_local_rank(), rows)
    return start, min(start + each, rows)
