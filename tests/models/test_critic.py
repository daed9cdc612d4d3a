from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spanwise.advantages import explained_variance
from spanwise.models.critic import CRITIC_FILE, SeparateCritic, SharedCritic, surprise_features
from spanwise.models.loading import ModelError
from tests.tiny import tiny_model

TOKENS = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([9, 7, 4])
MASK = (torch.arange(9) < LENGTHS[:, None]) & (torch.arange(9) >= 2)
MASK[0, 4] = False  # an observation
LOGPROBS = -torch.rand(3, 9, generator=torch.Generator().manual_seed(1))


def with_random_head(critic):
    torch.manual_seed(1)
    torch.nn.init.normal_(critic.head.weight)
    return critic


def both(policy):
    return [
        SeparateCritic(policy),
        SeparateCritic(policy, reads_surprise=True),
        SharedCritic(policy, 1.0),
        SharedCritic(policy, 1.0, reads_surprise=True),
    ]


def test_every_value_is_0_before_the_first_update() -> None:
    for critic in both(tiny_model()):
        values, end_values = critic(TOKENS, MASK, LENGTHS, LOGPROBS)
        assert values.eq(0).all() and end_values.eq(0).all()


def test_a_value_is_predicted_before_its_token() -> None:
    """It changes with what stands before the token, and with nothing at or after it."""
    for critic in map(with_random_head, both(tiny_model())):
        values, end_values = critic(TOKENS, MASK, LENGTHS, LOGPROBS)
        for t in range(2, 9):
            changed = TOKENS.clone()
            changed[0, t] = 61
            other, other_end = critic(changed, MASK, LENGTHS, LOGPROBS)
            torch.testing.assert_close(other[0, : t + 1], values[0, : t + 1])
            if t < 8:
                assert (other[0, t + 1 :] != values[0, t + 1 :])[MASK[0, t + 1 :]].all()
            assert other_end[0] != end_values[0]


def test_values_stand_where_the_mask_is_and_padding_changes_none() -> None:
    critic = with_random_head(SeparateCritic(tiny_model(), reads_surprise=True))
    values, end_values = critic(TOKENS, MASK, LENGTHS, LOGPROBS)
    assert values[~MASK].eq(0).all() and values[MASK].ne(0).all()
    row, row_end = critic(TOKENS[2:, :4], MASK[2:, :4], LENGTHS[2:], LOGPROBS[2:, :4])
    torch.testing.assert_close(row[0], values[2, :4], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(row_end[0], end_values[2], rtol=1e-5, atol=1e-6)
    # the value after the last token is the next token's, were there one
    longer = MASK.clone()
    longer[2, 4] = True
    next_values = critic(TOKENS, longer, LENGTHS + torch.tensor([0, 0, 1]), LOGPROBS).values
    torch.testing.assert_close(next_values[2, 4], end_values[2], rtol=1e-5, atol=1e-6)


def test_surprise_is_read_before_the_token_and_only_if_asked_for() -> None:
    plain, surprised = both(tiny_model())[:2]
    for critic in map(with_random_head, (plain, surprised)):
        values, end_values = critic(TOKENS, MASK, LENGTHS, LOGPROBS)
        for t in (3, 4, 8):  # 4 is an observation
            changed = LOGPROBS.clone()
            changed[0, t] = -5.0
            other, other_end = critic(TOKENS, MASK, LENGTHS, changed)
            assert torch.equal(other[0, : t + 1], values[0, : t + 1])
            later = MASK[0, t + 1 :]
            read = critic is surprised and t != 4
            assert bool((other - values)[0, t + 1 :][later].ne(0).all()) == (read or t == 8)
            assert (other_end[0] != end_values[0]) == read


def test_surprise_by_hand() -> None:
    mask = torch.tensor([[False, True, True, False, True]])
    logprobs = torch.tensor([[torch.nan, -1.0, -3.0, torch.nan, -0.5]])
    found = surprise_features(logprobs, mask)[0]
    assert found[:, 0].tolist() == [0, 10, 30, 0, 5]
    assert found[:, 1].tolist() == [0, 10, 30, 30, 30]
    assert (found[:, 2] / 10).exp().tolist() == pytest.approx([1, 2, 5, 5, 5.5])


def test_nothing_precedes_the_first_token() -> None:
    with pytest.raises(ValueError, match="first token"):
        SeparateCritic(tiny_model())(TOKENS, torch.ones_like(MASK), LENGTHS, LOGPROBS)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_policys_trunk_gets_the_stated_share_of_the_gradient(share: float) -> None:
    def gradients(policy, trunk_gradient: float):
        critic = with_random_head(SharedCritic(policy, trunk_gradient))
        critic(TOKENS, MASK, LENGTHS, LOGPROBS).values.square().sum().backward()
        trunk = [p.grad for p in policy.base_model.parameters()]
        return trunk, critic.head.weight.grad

    whole, head = gradients(tiny_model(), 1.0)
    part, same_head = gradients(tiny_model(), share)
    torch.testing.assert_close(same_head, head)  # the head has it all
    for a, b in zip(whole, part, strict=True):
        if share == 0:
            assert b is None or b.eq(0).all()
        else:
            torch.testing.assert_close(b, share * a, rtol=1e-4, atol=1e-6)


def test_a_critic_of_its_own_leaves_the_policy_alone() -> None:
    policy = tiny_model()
    critic = with_random_head(SeparateCritic(policy))
    critic(TOKENS, MASK, LENGTHS, LOGPROBS).values.sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    own = {p.data_ptr() for p in critic.parameters()}
    assert not own & {p.data_ptr() for p in policy.parameters()}


def test_a_shared_trunk_is_saved_with_the_policy_alone(tmp_path: Path) -> None:
    policy = tiny_model()
    for critic in map(with_random_head, both(policy)):
        save_file(critic.weights(), tmp_path / CRITIC_FILE)
        names = set(load_file(tmp_path / CRITIC_FILE))
        shared = isinstance(critic, SharedCritic)
        of_head = {f"{layer}.{w}" for layer in ("inner", "head") for w in ("weight", "bias")}
        assert (names == of_head) == shared
        surprised = critic.reads_surprise
        if shared:
            again = SharedCritic(policy, 1.0, reads_surprise=surprised)
        else:
            again = SeparateCritic(policy, reads_surprise=surprised)
        again.restore(tmp_path)
        expected = critic(TOKENS, MASK, LENGTHS, LOGPROBS).values
        assert torch.equal(again(TOKENS, MASK, LENGTHS, LOGPROBS).values, expected)


def test_a_checkpoint_without_a_critic_or_with_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no critic"):
        SeparateCritic(tiny_model()).restore(tmp_path)
    save_file(SharedCritic(tiny_model(), 1.0).weights(), tmp_path / CRITIC_FILE)
    with pytest.raises(ModelError, match="another"):
        SeparateCritic(tiny_model()).restore(tmp_path)


def test_explained_variance_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False]])
    targets = torch.tensor([[0.0, 1.0, 0.0, 5.0]])
    assert explained_variance(targets + 3, targets, mask) == pytest.approx(1)
    assert explained_variance(torch.zeros(1, 4), targets, mask) == pytest.approx(0)
    # targets vary by 2/9; errors 0 1 -1 by 2/3: 1 - 3
    wrong = torch.tensor([[0.0, 0.0, 1.0, 9.0]])
    assert explained_variance(wrong, targets, mask) == pytest.approx(-2)
    assert explained_variance(wrong, torch.ones(1, 4), mask) == 0.0
    for dtype in (torch.float32, torch.float64):  # alike but for the last digit
        near = torch.ones(1, 4, dtype=dtype)
        near[0, 1] += torch.finfo(dtype).eps
        assert explained_variance(wrong.to(dtype), near, mask) == 0.0
        assert explained_variance(wrong.to(dtype), near - 1, mask) == 0.0
    assert explained_variance(wrong, targets, torch.zeros_like(mask)) == 0.0
