from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spanwise.batch import Batch
from spanwise.learn.reward_shaping import KLPenalty, Overlong, length_penalties, response_lengths
from tests.trees import of_probabilities

BATCH = Batch.from_trees(
    [
        of_probabilities(
            ((0.5,) * 4, 1.0, "end"), ((0.5,) * 6, 0.0, "length"), ((0.5,) * 5, 1.0, "end")
        )
    ]
)
SCORED = replace(
    BATCH,
    end_values=torch.tensor([0.1, 0.2, 0.3]),
    values=torch.zeros_like(BATCH.engine_logprobs),
)


def test_truncated_rows_are_trained_on_as_scored_by_default() -> None:
    batch = Overlong()(SCORED, 6)
    assert batch.truncated.tolist() == [False, True, False]
    assert batch.trained.all() and batch.returns.tolist() == [1, 0, 1]
    assert batch.end_values is not None and batch.end_values.eq(0).all()


def test_truncated_rows_are_masked_or_bootstrapped() -> None:
    masked = Overlong(on_truncation="mask")(SCORED, 6)
    assert masked.trained.tolist() == [True, False, True]
    assert masked.loss_mask.sum(1).tolist() == [4, 0, 5] and masked.returns.tolist() == [1, 0, 1]
    onward = Overlong(on_truncation="bootstrap")(SCORED, 6)
    assert onward.end_values is not None
    assert onward.end_values.tolist() == pytest.approx([0, 0.2, 0])
    assert onward.trained.all()


def test_the_soft_penalty_falls_over_the_last_tokens() -> None:
    assert response_lengths(BATCH).tolist() == [4, 6, 5]
    # limit 6, over 4 tokens: lengths 4, 6, 5 lose 2/4, 4/4, 3/4
    batch = Overlong(penalty_tokens=4)(BATCH, 6)
    assert batch.returns.tolist() == pytest.approx([0.5, -1, 0.25])
    # at the last model token, where the outcome is paid; and a KL penalty comes on top
    assert batch.rewards_by_token.sum(1).tolist() == pytest.approx([0.5, -1, 0.25])
    assert batch.rewards_by_token[0, 5].item() == pytest.approx(0.5)
    logprobs = torch.where(BATCH.mask, -1.0, 0.0)
    scored = replace(batch, old_logprobs=logprobs, reference_logprobs=logprobs - 0.5)
    both = KLPenalty(coefficient=0.2, estimator="k1", where="reward").in_reward(scored)
    assert both.returns.tolist() == pytest.approx([0.5 - 0.4, -1 - 0.6, 0.25 - 0.5])
    assert length_penalties(torch.tensor([9]), 6, 4).tolist() == [-1]


def test_a_penalty_in_the_reward_by_hand() -> None:
    logprobs = torch.where(BATCH.mask, -1.0, 0.0)
    reference = torch.where(BATCH.mask, -1.5, 9.0)
    batch = replace(BATCH, old_logprobs=logprobs, reference_logprobs=reference)
    for estimate, nats in (("k1", 0.5), ("k2", 0.125), ("k3", 0.5 + torch.e**-0.5 - 1)):
        kl = KLPenalty(coefficient=0.2, estimator=estimate, where="reward")
        paid = kl.in_reward(batch)
        assert paid.token_rewards is not None
        torch.testing.assert_close(
            paid.token_rewards, torch.where(BATCH.mask, -0.2 * nats, 0.0), atol=1e-6, rtol=1e-5
        )
        expected = (BATCH.returns - 0.2 * nats * BATCH.mask.sum(1)).tolist()
        assert paid.returns.tolist() == pytest.approx(expected, abs=1e-5)
    assert KLPenalty(coefficient=0.2).in_reward(batch).token_rewards is None
    with pytest.raises(ValueError, match="reference"):
        KLPenalty(coefficient=0.2, where="reward").in_reward(BATCH)
