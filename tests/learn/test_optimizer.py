"""The optimizer: torch's own on full precision, and no step lost on less."""

from __future__ import annotations

import copy

import pytest
import torch

from spanwise.learn.optimizer import Float32AdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}


def gradients(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_adamw_bit_for_bit_on_full_precision(dtype: torch.dtype) -> None:
    start = gradients(0, 1)[0].to(dtype)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine, peer = Float32AdamW([ours], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)
    for gradient in gradients(1, 4):
        ours.grad, theirs.grad = gradient.to(dtype), gradient.to(dtype)
        mine.step()
        peer.step()
    assert torch.equal(ours, theirs)
    assert mine.state[ours].keys() == peer.state[theirs].keys()


def test_a_short_weight_is_the_rounding_of_a_float32_one() -> None:
    """In one group with a full one: both are what AdamW in float32 makes of them."""
    start = gradients(0, 1)[0].bfloat16()
    short, full = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    theirs = torch.nn.Parameter(start.float())
    mine, peer = Float32AdamW([short, full], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)
    for gradient in gradients(1, 4):
        rounded = gradient.bfloat16()
        short.grad, full.grad, theirs.grad = rounded, rounded.float(), rounded.float()
        mine.step()
        peer.step()
        assert short.grad is rounded  # still there for whoever reads it
    assert torch.equal(full, theirs)
    assert torch.equal(mine.state[short]["master"], theirs)
    assert torch.equal(short, theirs.bfloat16())


def test_small_steps_add_up() -> None:
    """A thousand steps of 1e-6 are 1e-3; each alone is far below what bfloat16 can tell."""

    def moved(optimizer: type[torch.optim.AdamW]) -> float:
        weight = torch.nn.Parameter(torch.tensor([0.02], dtype=torch.bfloat16))
        made = optimizer([weight], lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0)
        for _ in range(1000):
            weight.grad = torch.ones_like(weight)
            made.step()
        return 0.02 - float(weight.detach())

    assert moved(Float32AdamW) == pytest.approx(1e-3, rel=0.05)
    assert moved(torch.optim.AdamW) == pytest.approx(0, abs=1e-4)


def test_a_restored_optimizer_goes_on_in_full_precision() -> None:
    weight = torch.nn.Parameter(gradients(0, 1)[0].bfloat16())
    unmoved = torch.nn.Parameter(torch.ones(2).bfloat16())  # no gradient, no state
    optimizer = Float32AdamW([weight, unmoved], **SETTINGS)
    first, second = gradients(1, 2)
    weight.grad = first.bfloat16()
    optimizer.step()
    again = torch.nn.Parameter(weight.detach().clone())
    restored = Float32AdamW([again, torch.nn.Parameter(torch.ones(2).bfloat16())], **SETTINGS)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert restored.state[again]["master"].dtype == torch.float32
    for one, its in ((weight, optimizer), (again, restored)):
        one.grad = second.bfloat16()
        its.step()
    assert torch.equal(restored.state[again]["master"], optimizer.state[weight]["master"])
    assert torch.equal(again, weight)
