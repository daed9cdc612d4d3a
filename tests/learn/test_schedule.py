"""The learning rate: by hand, through whole updates, and under resume."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from spanwise.learn.schedule import Constant, Cosine, Linear, Schedule, WarmUp
from spanwise.learn.update import Update
from tests.learners import new_learner, trained
from tests.tiny import tiny_model
from tests.trees import RANDOM_TREES


def test_by_hand() -> None:
    assert [Constant(warmup_steps=4)(s, 9) for s in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [Linear(floor=0.5)(s, 4) for s in (1, 2, 3, 4)] == [1, 0.875, 0.75, 0.625]
    assert Cosine(warmup_steps=1)(4, 5) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine(), Linear(floor=0.3)], ids=str)
@pytest.mark.parametrize("warmup", [0, 1, 3, 8])
def test_it_rises_to_1_and_never_again(schedule: WarmUp, warmup: int) -> None:
    warmed = replace(schedule, warmup_steps=warmup)
    factors = [warmed(step, 8) for step in range(1, 9)]
    top = min(max(warmup, 1), 8) - 1
    assert factors[top] == 1 and all(0 < f <= 1 for f in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_it_scales_the_rate_of_each_step_and_the_metrics_say_so() -> None:
    """A step of Adam's first update is as long as its learning rate."""

    @dataclass(frozen=True, kw_only=True)
    class Own(Schedule):
        def __call__(self, step: int, num_steps: int) -> float:
            return 0.125

    update = Update(learning_rate=1e-3, max_gradient_norm=1e9)
    moved: list[float] = []
    for schedule in (Constant(), Linear(warmup_steps=4), Own()):
        model = tiny_model(dtype=torch.float64)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        learner = new_learner(model, update=update, schedule=schedule, num_steps=8)
        metrics = trained(learner, RANDOM_TREES)
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        moved.append(float((after - before).abs().max()))
        assert metrics["learning_rate"] == 1e-3 * schedule(1, 8)
    assert moved[1] == pytest.approx(moved[0] / 4, rel=1e-3)
    assert moved[2] == pytest.approx(moved[0] / 8, rel=1e-3)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_factor_that_is_no_rate_is_refused(factor: float) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Schedule):
        def __call__(self, step: int, num_steps: int) -> float:
            return factor

    with pytest.raises(ValueError, match="Odd gave the factor"):
        trained(new_learner(tiny_model(), schedule=Odd()), RANDOM_TREES)
