"""``check_advantage`` passes every advantage of the library and fails each broken one."""

import pytest
import torch

from spanwise import advantages as adv
from spanwise import spans
from spanwise.credit import GroupAdvantage, SpanAdvantage, TreeAdvantage
from spanwise.partitions import (
    FixedLength,
    HighEntropy,
    LowProbability,
    MeanLength,
    Token,
    Trajectory,
    Turn,
)
from spanwise.testing import check_advantage


@pytest.mark.parametrize(
    "advantage",
    [
        GroupAdvantage(baseline="group_normalised"),
        GroupAdvantage(baseline="group_mean"),
        GroupAdvantage(baseline="leave_one_out"),
        GroupAdvantage(baseline="batch_normalised"),
        *(
            TreeAdvantage(value=v)
            for v in ("child_softmax", "child_entropy", "child_mean", "leaf_mean")
        ),
        *(TreeAdvantage(advantage=a) for a in ("over_parent", "over_root", "over_both")),
        *(
            SpanAdvantage(spans=spans, gamma=0.9)
            for spans in (
                LowProbability(),
                MeanLength(length=2),
                HighEntropy(),
                FixedLength(length=2),
                Turn(),
                Token(),
                Trajectory(),
            )
        ),
        SpanAdvantage(length_alpha=0.5, whiten=False),
        SpanAdvantage(spans=Token(), length_alpha=0.05),  # lam = 0 in short rows
        SpanAdvantage(spans=Token(), lam=0.0, whiten=False),
    ],
    ids=str,
)
def test_advantages_of_the_library_pass(advantage):
    check_advantage(advantage)


def above_the_prompt(batch):
    """Correct: the critic foresees the whole row from its first model token."""
    first = batch.mask & (batch.mask.cumsum(1) == 1)
    foreseen = torch.where(first, batch.values, 0).sum(1)
    return adv.to_tokens(batch.returns - foreseen, batch.mask)


def signs(batch):
    """Correct, if crude."""
    return GroupAdvantage(baseline="group_mean")(batch).sign()


@pytest.mark.parametrize("advantage", [above_the_prompt, signs])
def test_advantages_of_ones_own_pass(advantage):
    check_advantage(advantage)


def rewards_everywhere(batch):
    return batch.returns[:, None].expand(batch.mask.shape)


def attached(batch):
    w = torch.ones((), requires_grad=True)
    return torch.where(batch.mask, w * batch.returns[:, None], 0)


def per_row(batch):
    return batch.returns


def whole_numbers(batch):
    return (batch.returns[:, None] * batch.mask).long()


def in_place(batch):
    batch.values.add_(1)
    return adv.to_tokens(batch.returns, batch.mask)


def random_scale(batch):
    return adv.to_tokens(batch.returns * torch.rand(()), batch.mask)


def mask_by_product(batch):
    return (batch.returns[:, None] - batch.values) * batch.mask


def values_of_observations(batch):
    return torch.where(batch.mask, batch.returns[:, None] - batch.values.cumsum(1), 0)


def discounted_by_place(batch):
    place = torch.arange(batch.mask.shape[1])
    return torch.where(batch.mask, batch.returns[:, None] * 0.9**place, 0)


def from_the_padded_end(batch):
    to_come = batch.mask.shape[1] - torch.arange(batch.mask.shape[1])
    return torch.where(batch.mask, batch.returns[:, None] * 0.9**to_come, 0)


def first_row_as_baseline(batch):
    return adv.to_tokens(batch.returns - batch.returns[0], batch.mask)


def by_number_of_the_tree(batch):
    return adv.to_tokens(batch.returns * (1 + batch.groups), batch.mask)


def divided_by_spread(batch):
    return adv.to_tokens((batch.returns - batch.returns.mean()) / batch.returns.std(), batch.mask)


def divided_by_length(batch):
    return adv.to_tokens(batch.returns, batch.mask) / batch.mask.sum(1, keepdim=True)


def gae_over_observations(batch):
    """The convention that ignores the mask inside the recursion."""
    every = torch.ones_like(batch.mask)
    credit = adv.span_advantages(
        batch.rewards_by_token, torch.where(batch.mask, batch.values, 0), spans.by_token(every)
    )
    return torch.where(batch.mask, credit, 0)


def gae(batch, rewards=None, values=None):
    rewards = batch.rewards_by_token if rewards is None else rewards
    values = batch.values if values is None else values
    return adv.span_advantages(rewards, values, spans.by_token(batch.mask))


def bootstraps_from_observations(batch):
    """The next place's value, whoever wrote it."""
    next_values = torch.nn.functional.pad(batch.values[:, 1:], (0, 1))
    return torch.where(batch.mask, batch.rewards_by_token + next_values - batch.values, 0)


def ends_at_observations(batch):
    """Each turn is an episode of its own."""
    credit = torch.zeros_like(batch.values)
    for turn in range(3):
        of_turn = torch.where(batch.turns == turn, 0, -1)
        credit += adv.span_advantages(batch.rewards_by_token, batch.values, of_turn)
    return credit


def moved(x, mask, by):
    """The model tokens' numbers, ``by`` model tokens later."""
    found = torch.zeros_like(x)
    for row, places in enumerate(mask):
        own = x[row, places]
        zeros = own.new_zeros(abs(by))
        kept = [zeros, own[:-by]] if by > 0 else [own[-by:], zeros]
        found[row, places] = torch.cat(kept)[: len(own)] if len(own) > abs(by) else 0
    return found


def a_place_late(batch):
    return torch.where(batch.mask, gae(batch).roll(1, 1), 0)


def a_place_early(batch):
    return torch.where(batch.mask, gae(batch).roll(-1, 1), 0)


def a_token_late(batch):
    return adv.whiten(moved(gae(batch), batch.mask, 1), batch.mask)


def a_token_early(batch):
    return adv.whiten(moved(gae(batch), batch.mask, -1), batch.mask)


def values_after_the_token(batch):
    return gae(batch, values=moved(batch.values, batch.mask, -1))


def values_a_token_late(batch):
    return gae(batch, values=moved(batch.values, batch.mask, 1))


def rewards_a_token_early(batch):
    return gae(batch, rewards=moved(batch.rewards_by_token, batch.mask, -1))


def outcomes_alone(batch):
    """What was paid on the way is never read."""
    return adv.to_tokens(batch.turn_rewards[batch.leaves], batch.mask)


def paid_with_the_next_turn(batch):
    """A reward on the way stands at the first model token after its turn."""
    ends = batch.turns == batch.turns.amax(1, keepdim=True)
    on_the_way = torch.where(ends, 0, batch.rewards_by_token)
    at_the_end = torch.where(ends, batch.rewards_by_token, 0)
    return gae(batch, rewards=at_the_end + moved(on_the_way, batch.mask, 1))


def no_rewards(batch):
    return gae(batch, rewards=torch.zeros_like(batch.values))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (rewards_everywhere, "must be 0 where the mask is False"),
        (attached, "must be detached"),
        (per_row, r"is \[N, T\]"),
        (whole_numbers, "is float"),
        (in_place, "values was written to"),
        (random_scale, "the same advantages again"),
        (mask_by_product, "must be 0 where the mask is False|must be finite"),
        (values_of_observations, "must be finite|masked places"),
        (discounted_by_place, "longer observation"),
        (from_the_padded_end, "padding"),
        (first_row_as_baseline, "order of the rows"),
        (by_number_of_the_tree, "order of the trees"),
        (divided_by_spread, "must be finite"),
        (divided_by_length, "must be 0 where the mask is False"),
        (gae_over_observations, "longer observation"),
        (bootstraps_from_observations, "finite with NaN at masked places: observations"),
        (ends_at_observations, "after an observation must reach the turn before it"),
        (a_place_late, "predicted before its token"),
        (a_place_early, "last reward is paid for the last model token of its turn"),
        (a_token_late, "must not raise a token after it by more"),
        (a_token_early, "last reward is paid for the last model token of its turn"),
        (values_after_the_token, "predicted before its token"),
        (values_a_token_late, "predicted before its token"),
        (rewards_a_token_early, "last reward is paid for the last model token of its turn"),
        (outcomes_alone, "a reward on the way is paid for the last model token of its turn"),
        (paid_with_the_next_turn, "must not raise a token after it by more"),
        (no_rewards, "last reward is paid for the last model token of its turn"),
        (lambda batch: batch.returns.tolist(), "is a tensor, got list"),
    ],
)
def test_broken_advantages_fail(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_advantage(broken)


def test_infinite_credit_fails():
    one_row = GroupAdvantage()

    def broken(batch):
        credit = one_row(batch)
        return credit if batch.num_rows > 1 else torch.where(batch.mask, torch.inf, credit)

    with pytest.raises(AssertionError, match="must be finite"):
        check_advantage(broken)
