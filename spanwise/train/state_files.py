"""The trained weights of a run and their optimizer state, in one file per process.

Each process writes its rows of every split tensor; the main one also writes the tensors that
are not split. The rows of all files, one file after another, are the whole tensor, and each
process reads those that it is going to hold. So any number of processes can resume what any
number wrote, and none ever holds more than its part. The files are safetensors: nothing is
unpickled.
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
    """Name of the file that a process writes.

    Example:
      >>> state_file(0, 2)
      'state-00001-of-00002.safetensors'
    """
    return f"state-{rank + 1:05d}-of-{size:05d}.safetensors"


def training_state(
    part: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The trained weights of a model and the tensors that its optimizer keeps for each.

    Returns:
      Tensors by name: ``part/PARAMETER/weight``, ``part/PARAMETER/exp_avg``, …
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _trained(model, optimizer):
        kept = {WEIGHT: parameter, **optimizer.state.get(parameter, {})}
        tensors |= {f"{part}/{name}/{key}": tensor.detach() for key, tensor in kept.items()}
    return tensors


def write_state(file: Path, tensors: Mapping[str, Tensor], *, leads: bool) -> None:
    """Write this process's part of split tensors and, if it leads, the tensors that are whole."""
    own = {
        name: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).contiguous()
        for name, tensor in tensors.items()
        if leads or isinstance(tensor, DTensor)
    }
    save_file(own, file)


class StateFiles:
    """The files of all processes, in their order, open for reading."""

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
        """Restore a model's trained weights and their optimizer state.

        Raises:
          SpanwiseError: if the files belong to another model.
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
    """The parameters of an optimizer, in its order, with their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter


def _read(label: str, pieces: Sequence[Any], parameter: Tensor) -> Tensor:
    """A tensor, split like the parameter that it belongs to; a scalar as it is."""
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
    """First and last row (exclusive) of a parameter here: FSDP splits the first dimension."""
    rows = parameter.shape[0]
    if not isinstance(parameter, DTensor):
        return 0, rows
    each = -(-rows // parameter.device_mesh.size())
    start = min(each * parameter.device_mesh.get_local_rank(), rows)
    return start, min(start + each, rows)
