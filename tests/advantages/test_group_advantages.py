"""Group baselines against the standard library's statistics, and their invariances."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.advantages import (
    batch_scaled_advantages,
    centred_advantages,
    global_advantages,
    group_advantages,
    leave_one_out_advantages,
    length_weighted_advantages,
    to_tokens,
    whiten,
)

BASELINES = [
    batch_scaled_advantages,
    group_advantages,
    centred_advantages,
    leave_one_out_advantages,
    global_advantages,
]
rows = st.lists(
    st.tuples(st.integers(-8, 8).map(lambda k: k / 4), st.sampled_from([3, 0, 11])),
    min_size=1,
    max_size=12,
)


def tensors(rows):
    rewards = torch.tensor([reward for reward, _ in rows], dtype=torch.float64)
    return rewards, torch.tensor([group for _, group in rows])


@given(rows)
def test_baselines_are_those_of_the_standard_library(rows):
    rewards, groups = tensors(rows)
    centred = []
    for i, (reward, group) in enumerate(rows):
        own = [r for r, g in rows if g == group]
        others = [r for j, (r, g) in enumerate(rows) if g == group and j != i]
        difference = reward - statistics.fmean(own)
        centred.append(difference)
        std = statistics.stdev(own) if len(own) > 1 else 0.0
        expected = {
            group_advantages: difference / (std + 1e-6),
            centred_advantages: difference,
            leave_one_out_advantages: reward - statistics.fmean(others) if others else 0.0,
        }
        for function, number in expected.items():
            assert function(rewards, groups)[i].item() == pytest.approx(number, abs=1e-9)
    raw = statistics.stdev(rewards.tolist()) if len(rows) > 1 else 0.0
    got = batch_scaled_advantages(rewards, groups)
    assert got.tolist() == pytest.approx([c / (raw + 1e-6) for c in centred], abs=1e-9)
    scale = statistics.stdev(centred, 0.0) if len(rows) > 1 else 0.0
    got = global_advantages(rewards, groups)
    assert got.tolist() == pytest.approx([c / (scale + 1e-6) for c in centred], abs=1e-9)


@given(rows, st.data())
def test_a_length_weighted_baseline_is_that_of_a_loop(rows, data):
    rewards, groups = tensors(rows)
    lengths = [data.draw(st.integers(0, 5)) for _ in rows]
    got = length_weighted_advantages(rewards, groups, torch.tensor(lengths))
    for i, (reward, group) in enumerate(rows):
        own = [j for j, (_, g) in enumerate(rows) if g == group]
        total = sum(lengths[j] for j in own)
        mean = sum(lengths[j] * rows[j][0] for j in own) / max(1, total)
        assert got[i].item() == pytest.approx(reward - mean if total else 0.0, abs=1e-12)
    assert torch.equal(length_weighted_advantages(rewards, groups, rewards * 0), rewards * 0)


def test_equal_lengths_weigh_as_none():
    rewards, groups = torch.randn(2, 6), torch.zeros(6, dtype=torch.int64)
    even = length_weighted_advantages(rewards[0], groups, torch.full((6,), 3))
    torch.testing.assert_close(even, centred_advantages(rewards[0], groups))


def test_hand_worked_numbers():
    # Group 5: rewards 1 0 0 1, mean .5, squares 4 * .25 = 1, sample variance 1 / 3,
    # std .57735: +-.866025.
    # Leave one out: 1 - 1/3 = 2/3 and 0 - 2/3 = -2/3.
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    groups = torch.full((4,), 5)
    signs = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)

    def check(got, size):
        torch.testing.assert_close(got, signs * size, rtol=0, atol=1e-6)

    check(group_advantages(rewards, groups, eps=0), 0.75**0.5)
    check(centred_advantages(rewards, groups), 0.5)
    check(leave_one_out_advantages(rewards, groups), 2 / 3)


@pytest.mark.parametrize("function", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_groups_that_are_all_alike_get_exactly_zero(function, dtype):
    # Their mean in floating point is not exactly .1, so a plain difference would not be 0.
    rewards = torch.tensor([0.1] * 7 + [0.7], dtype=dtype)
    groups = torch.tensor([0] * 7 + [1])
    got = function(rewards, groups)
    assert got.tolist() == [0.0] * 8 and got.dtype == dtype


def test_a_large_group_of_bfloat16_rewards_has_its_true_mean():
    # 256 is as far as bfloat16 counts in steps of 1.
    rewards = torch.ones(400, dtype=torch.bfloat16)
    rewards[:200] = 0
    got = centred_advantages(rewards, torch.zeros(400, dtype=torch.int64))
    assert got.tolist() == [-0.5] * 200 + [0.5] * 200


@pytest.mark.parametrize("function", BASELINES)
@given(rows=rows, shift=st.integers(-3, 3), seed=st.integers(0, 99))
def test_shift_order_and_names_of_groups_do_not_matter(function, rows, shift, seed):
    rewards, groups = tensors(rows)
    got = function(rewards, groups)
    torch.testing.assert_close(function(rewards + shift, groups), got, rtol=0, atol=1e-9)
    torch.testing.assert_close(function(rewards, groups * -7 + 5), got, rtol=0, atol=1e-9)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    shuffled = function(rewards[order], groups[order])
    torch.testing.assert_close(shuffled, got[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("function", BASELINES)
def test_other_groups_do_not_matter_but_to_the_global_scale(function):
    rewards = torch.tensor([1.0, 0.0, 0.5])
    groups = torch.tensor([0, 0, 0])
    with_others = function(
        torch.cat([rewards, torch.tensor([9.0, -9.0])]), torch.tensor([0, 0, 0, 1, 1])
    )[:3]
    same = torch.allclose(with_others, function(rewards, groups))
    assert same == (function not in (global_advantages, batch_scaled_advantages))


@pytest.mark.parametrize("function", BASELINES)
def test_a_reward_that_was_never_given_is_refused(function):
    with pytest.raises(ValueError, match="never scored"):
        function(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"groups \(1,\)"):
        function(torch.tensor([1.0, 0.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="rewards must be float"):
        function(torch.tensor([1, 0]), torch.tensor([0, 0]))


def test_to_tokens_refuses_another_number_of_rows():
    with pytest.raises(ValueError, match="one for each row"):
        to_tokens(torch.ones(2), torch.ones(3, 4, dtype=torch.bool))


@given(st.integers(0, 2**31))
def test_whiten_is_over_all_model_tokens_of_the_batch(seed):
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 6, generator=generator) < 0.6
    mask[0, :2] = True
    got = whiten(torch.where(mask, advantages, torch.nan), mask)
    numbers = advantages[mask].tolist()
    mean, std = statistics.fmean(numbers), statistics.stdev(numbers)
    expected = torch.where(mask, (advantages - mean) / (std + 1e-6), 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_whiten_of_what_is_all_alike_is_exactly_zero():
    mask = torch.tensor([[True] * 7, [False] * 7])
    assert whiten(torch.full((2, 7), 0.1), mask).tolist() == [[0.0] * 7] * 2
    assert whiten(torch.full((2, 7), 0.1), mask & False).tolist() == [[0.0] * 7] * 2


def test_masked_tokens_get_nothing_of_their_row():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    tokens = to_tokens(torch.tensor([0.5, -2.0]), mask)
    assert tokens.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, -2.0]]
