"""AdamW whose small steps are not lost in the rounding of bfloat16 weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as adamw_step

from spanwise.errors import SpanwiseError
from spanwise.models.lora import trained_parameters


def adamw(
    model: torch.nn.Module,
    learning_rate: float,
    *,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> Float32AdamW:
    """The optimizer of a model's trained weights: all of them, or those of an adapter."""
    return Float32AdamW(
        trained_parameters(model), lr=learning_rate, betas=betas, weight_decay=weight_decay
    )


def check_betas(betas: Sequence[float], setting: str) -> None:
    """Refuse decays that AdamW cannot have.

    Raises:
      SpanwiseError: if there are not two, or one is not in [0, 1).
    """
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise SpanwiseError(f"{setting} must be two numbers in [0, 1), got {betas}")


class Float32AdamW(torch.optim.AdamW):
    """AdamW that keeps a float32 master copy of each weight of less precision.

    A step of 1e-6 is lost on a bfloat16 weight of 0.02, whose neighbours are 1e-4 away. The
    steps add up in the master copy, and the weight is its rounding:

        m <- AdamW(m, g)        w <- bfloat16(m)

    On weights of float32 and float64 it is ``torch.optim.AdamW``, bit for bit. The master
    copy is part of the optimizer's state, as ``master``. A bfloat16 weight takes 16 bytes: 2
    for itself, 2 for its gradient, 12 for master copy and moments. Float32 weights under the
    ``MixedPrecisionPolicy`` of FSDP2 take as many, but only with a process group; under
    autocast they are cast anew in every forward pass. Here one process and many train in the
    same way, and an engine samples from the very weights that are trained.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden = [self._master_step(group) for group in self.param_groups]
        loss = super().step(closure)  # of the rest: a weight without a gradient is passed over
        for parameter, gradient in (pair for pairs in hidden for pair in pairs):
            parameter.grad = gradient
        return loss

    def _master_step(self, group: Mapping[str, Any]) -> list[tuple[torch.nn.Parameter, Tensor]]:
        """Step the short weights of a group, and take their gradients from them.

        Returns:
          Each such weight with the gradient that it had.
        """
        pairs = [(p, p.grad) for p in group["params"] if p.grad is not None and _is_short(p)]
        if not pairs:
            return []
        states = [self._state(parameter) for parameter, _ in pairs]
        adamw_step(
            [state["master"] for state in states],
            [gradient.float() for _, gradient in pairs],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for (parameter, _), state in zip(pairs, states, strict=True):
            parameter.copy_(state["master"])
            parameter.grad = None
        return pairs

    def _state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            master = parameter.detach().float()
            state |= {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
                "master": master,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, in the precision in which it was saved."""
        super().load_state_dict(state_dict)  # casts to the precision of the weight
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, state in state_dict["state"].items():
            if _is_short(parameter := parameters[number]):
                for key, value in state.items():
                    where = value.device if key == "step" else parameter.device
                    self.state[parameter][key] = value.detach().clone().to(where)


def _is_short(parameter: Tensor) -> bool:
    return parameter.dtype in (torch.bfloat16, torch.float16)
