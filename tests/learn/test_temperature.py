"""The policy that is trained is the one that is sampled, at any temperature."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.credit import Advantage
from spanwise.errors import SpanwiseError
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.partitions import Token
from tests.learners import new_learner, trained
from tests.tiny import tiny_model
from tests.trees import grown, root, turn

LENGTH = 4
ANSWERS = list(itertools.product((0, 1), repeat=LENGTH))
"""All that a vocabulary of two tokens can say."""

REWARDS = torch.rand(len(ANSWERS), generator=torch.Generator().manual_seed(1)).double()
PROMPT = (1, 0)


def probabilities(model: Any, temperature: float) -> Tensor:
    """Of every answer, one after another, from the definition."""
    found: list[Tensor] = []
    for answer in ANSWERS:
        logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
        odds = torch.exp(logits / temperature)
        shares = odds / odds.sum(1, keepdim=True)
        found.append(torch.stack([shares[t, a] for t, a in enumerate(answer)]).prod())
    return torch.stack(found)


@dataclass(frozen=True, kw_only=True)
class Expected(Advantage):
    """Each answer counts as often as it is drawn."""

    chances: tuple[float, ...]

    def __call__(self, batch: Batch) -> Tensor:
        chances = torch.tensor(self.chances, dtype=torch.float64)
        rows = chances * batch.num_rows * (batch.returns - 0.5)
        return torch.where(batch.mask, rows[:, None], 0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_nothing_is_sampled_at_is_refused(temperature: float) -> None:
    with pytest.raises(SpanwiseError, match="temperature above 0"):
        new_learner(tiny_model(2), temperature=temperature)


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0, 1.5])
def test_an_update_follows_the_gradient_of_the_sampled_policys_reward(temperature: float) -> None:
    model = tiny_model(2, dtype=torch.float64)
    chances = probabilities(model, temperature)
    expected = torch.autograd.grad((chances * REWARDS).sum(), list(model.parameters()))
    answers = [turn(i, tokens=a, reward=float(REWARDS[i])) for i, a in enumerate(ANSWERS)]
    learner = new_learner(
        model,
        Objective(ratio_spans=Token(), loss_aggregation=1, clip_low=0.2, clip_high=0.2),
        Update(learning_rate=0.0, max_gradient_norm=1e9),
        advantage=Expected(chances=tuple(chances.tolist())),
        temperature=temperature,
    )
    found: list[Tensor] = []

    def keep(*_: object) -> None:  # torch calls it twice once AdamW and Adam are both in use
        found[:] = [p.grad.clone() for p in model.parameters()]

    learner.optimizer.register_step_pre_hook(keep)
    trained(learner, [grown(root(*PROMPT), *answers)])
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(-gradient, wanted, rtol=0, atol=1e-10)
    assert max(float(wanted.abs().max()) for wanted in expected) > 1e-3
