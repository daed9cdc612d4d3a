"""``check_advantage`` passes every advantage of the library and fails each broken one."""

import pytest
import torch

from spanwise import advantages as adv
from spanwise import spans
from spanwise.credit import GroupAdvantage, Segments, SpanAdvantage, TreeAdvantage
from spanwise.testing import check_advantage


@pytest.mark.parametrize(
    "advantage",
    [
        *(GroupAdvantage(baseline=b) for b in ("group_normalised", "group_mean", "leave_one_out")),
        *(TreeAdvantage(value=v) for v in ("child_softmax", "child_mean", "leaf_mean")),
        *(TreeAdvantage(advantage=a) for a in ("over_parent", "over_root", "over_both")),
        *(
            SpanAdvantage(segments=Segments(by=by, length=2), gamma=0.9)
            for by in ("probability", "mean_length", "entropy", "length", "turn", "token", "whole")
        ),
        SpanAdvantage(length_alpha=0.5, whiten=False),
    ],
    ids=str,
)
def test_advantages_of_the_library_pass(advantage):
    check_advantage(advantage)


def rewards_everywhere(batch):
    return batch.rewards[:, None].expand(batch.mask.shape)


def attached(batch):
    w = torch.ones((), requires_grad=True)
    return torch.where(batch.mask, w * batch.rewards[:, None], 0)


def per_row(batch):
    return batch.rewards


def whole_numbers(batch):
    return (batch.rewards[:, None] * batch.mask).long()


def in_place(batch):
    batch.values.add_(1)
    return adv.to_tokens(batch.rewards, batch.mask)


def random_scale(batch):
    return adv.to_tokens(batch.rewards * torch.rand(()), batch.mask)


def mask_by_product(batch):
    return (batch.rewards[:, None] - batch.values) * batch.mask


def values_of_observations(batch):
    return torch.where(batch.mask, batch.rewards[:, None] - batch.values.cumsum(1), 0)


def discounted_by_place(batch):
    place = torch.arange(batch.mask.shape[1])
    return torch.where(batch.mask, batch.rewards[:, None] * 0.9**place, 0)


def from_the_padded_end(batch):
    to_come = batch.mask.shape[1] - torch.arange(batch.mask.shape[1])
    return torch.where(batch.mask, batch.rewards[:, None] * 0.9**to_come, 0)


def first_row_as_baseline(batch):
    return adv.to_tokens(batch.rewards - batch.rewards[0], batch.mask)


def by_number_of_the_tree(batch):
    return adv.to_tokens(batch.rewards * (1 + batch.groups), batch.mask)


def divided_by_spread(batch):
    return adv.to_tokens((batch.rewards - batch.rewards.mean()) / batch.rewards.std(), batch.mask)


def divided_by_length(batch):
    return adv.to_tokens(batch.rewards, batch.mask) / batch.mask.sum(1, keepdim=True)


def gae_over_observations(batch):
    """The convention that ignores the mask inside the recursion."""
    every = torch.ones_like(batch.mask)
    credit = adv.span_advantages(
        batch.rewards_by_token, torch.where(batch.mask, batch.values, 0), spans.by_token(every)
    )
    return torch.where(batch.mask, credit, 0)


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
        (lambda batch: batch.rewards.tolist(), "is a tensor, got list"),
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
