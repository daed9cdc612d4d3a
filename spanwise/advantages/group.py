"""Credit without a critic: a row is compared with the other rows of its prompt.

All functions take one reward per row and the number of its group. A reward of NaN means
"never scored"; such rows must be left out before, or their siblings' baselines are off.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from spanwise.spans import require_same_shape


def group_advantages(rewards: Tensor, groups: Tensor, *, eps: float = 1e-6) -> Tensor:
    """GRPO: the reward's distance from its group's mean, in standard deviations.

        A_i = (R_i - mean) / (std + eps)

    ``std`` is the sample standard deviation (n - 1 in the denominator), as in the GRPO
    trainers in use; the population one would make all advantages sqrt(n / (n - 1)) larger.

    Limits: a group whose rewards are all alike, or that has one row, gets exactly 0.

    Args:
      rewards: ``[N]`` float, one per row.
      groups: ``[N]`` int64, which prompt the row answers; any numbers, in any order.
      eps: Added to the standard deviation, in units of reward.

    Returns:
      ``[N]`` in standard deviations of the group; detached.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> group_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 8]), eps=0).tolist()
      [0.7071067690849304, -0.7071067690849304, 0.0]

    References:
      Shao et al., DeepSeekMath, arXiv:2402.03300.
    """
    centred, group, counts = centred_by_group(rewards, groups)
    squares = torch.zeros_like(counts).index_add(0, group, centred.square())
    std = (squares / (counts - 1).clamp(min=1)).sqrt()[group]
    # eps = 0 would make 0 / 0 of a group that is all alike.
    return torch.where(centred == 0, 0, centred / (std + eps)).to(rewards.dtype)


def centred_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Dr. GRPO: the reward minus its group's mean, not divided by the deviation.

    Dividing makes prompts that are nearly always or nearly never solved weigh more.

        A_i = R_i - mean

    Args:
      rewards: ``[N]`` float, one per row.
      groups: ``[N]`` int64, which prompt the row answers.

    Returns:
      ``[N]`` in units of reward; detached. Exactly 0 if the group's rewards are all alike.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> centred_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 8])).tolist()
      [0.5, -0.5, 0.0]

    References:
      Liu et al., Understanding R1-Zero-Like Training, arXiv:2503.20783.
    """
    return centred_by_group(rewards, groups)[0].to(rewards.dtype)


def leave_one_out_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """RLOO: the reward minus the mean of the other rows of its group.

    A baseline without the row's own reward leaves the policy gradient unbiased.

        A_i = R_i - mean over j != i of R_j = n / (n - 1) * (R_i - mean)

    Limits: a row without siblings has no baseline and gets 0.

    Args:
      rewards: ``[N]`` float, one per row.
      groups: ``[N]`` int64, which prompt the row answers.

    Returns:
      ``[N]`` in units of reward; detached.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> leave_one_out_advantages(
      ...     torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 0, 0])).tolist()
      [1.5, 0.0, -1.5]

    References:
      Ahmadian et al., Back to Basics, arXiv:2402.14740.
    """
    centred, group, counts = centred_by_group(rewards, groups)
    size = counts[group]
    return (centred * size / (size - 1).clamp(min=1)).to(rewards.dtype)


def global_advantages(rewards: Tensor, groups: Tensor, *, eps: float = 1e-6) -> Tensor:
    """REINFORCE++ with a group baseline: centred by group, scaled by the whole batch.

    One scale for all prompts: a prompt that is nearly always solved is not blown up.

        A_i = (R_i - mean of its group) / (std of these differences over the batch + eps)

    This is the paper's "REINFORCE++-baseline". The deviation is the sample one, over rows:
    a row counts once however long it is. The form that counts tokens is
    ``whiten(to_tokens(centred_advantages(rewards, groups), mask), mask)``.

    Limits: 0 if no group disagrees.

    Args:
      rewards: ``[N]`` float, one per row.
      groups: ``[N]`` int64, which prompt the row answers.
      eps: Added to the standard deviation, in units of reward.

    Returns:
      ``[N]`` in standard deviations of the batch; detached.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> global_advantages(
      ...     torch.tensor([1.0, 0.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]), eps=0).tolist()
      [1.2247447967529297, -1.2247447967529297, 0.0, 0.0]

    References:
      Hu et al., REINFORCE++, arXiv:2501.03262.
    """
    centred, _, _ = centred_by_group(rewards, groups)  # its mean is 0 already
    std = (centred.square().sum() / max(1, len(centred) - 1)).sqrt()
    return torch.where(centred == 0, 0, centred / (std + eps)).to(rewards.dtype)


def batch_scaled_advantages(rewards: Tensor, groups: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Lite PPO: centred by group, scaled by the deviation of the batch's raw rewards.

        A_i = (R_i - mean of its group) / (std of the rewards over the batch + eps)

    ``global_advantages`` divides by the deviation of the differences instead, which does not
    grow with how far the prompts' means are apart.

    Args:
      rewards: ``[N]`` float, one per row.
      groups: ``[N]`` int64, which prompt the row answers.
      eps: Added to the standard deviation, the sample one over rows, in units of reward.

    Returns:
      ``[N]`` in standard deviations of the batch; detached. Exactly 0 if the group's rewards
      are all alike.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> batch_scaled_advantages(
      ...     torch.tensor([1.0, 0.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1]), eps=0).tolist()
      [0.6123723983764648, -0.6123723983764648, 0.6123723983764648, -0.6123723983764648]

    References:
      Liu et al., Tricks or Traps?, arXiv:2508.08221.
    """
    centred, _, _ = centred_by_group(rewards, groups)
    of_batch, _, _ = centred_by_group(rewards, torch.zeros_like(groups))
    std = (of_batch.square().sum() / max(1, len(of_batch) - 1)).sqrt()
    return torch.where(centred == 0, 0, centred / (std + eps)).to(rewards.dtype)


def length_weighted_advantages(rewards: Tensor, groups: Tensor, lengths: Tensor) -> Tensor:
    """OPO: the reward minus its group's mean, in which a row counts by its length.

    The baseline of least variance, if the squared norm of a row's gradient grows with its
    number of tokens.

        A_i = R_i - sum of |y_j| R_j / sum of |y_j|  over the rows j of its group

    Limits: ``centred_advantages`` if all rows of a group are equally long.

    Args:
      rewards: ``[N]`` float, one per row.
      groups: ``[N]`` int64, which prompt the row answers.
      lengths: ``[N]`` model tokens of each row.

    Returns:
      ``[N]`` in units of reward; detached. Exactly 0 if the group's rewards are all alike, and
      if none of its rows has a token.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> length_weighted_advantages(
      ...     torch.tensor([1.0, 0.0]), torch.tensor([7, 7]), torch.tensor([1, 3])).tolist()
      [0.75, -0.25]

    References:
      Hao et al., On-Policy RL with Optimal Reward Baseline, arXiv:2505.23585.
    """
    require_same_shape(rewards=rewards, lengths=lengths)
    centred, group, counts = centred_by_group(rewards, groups)
    weights = lengths.to(centred.dtype)
    zeros = torch.zeros_like(counts)
    totals = zeros.index_add(0, group, weights)
    # Alike rewards are 0 after the first centring, so that 0 is what is left of them.
    means = zeros.index_add(0, group, weights * centred) / totals.clamp(min=1)
    return torch.where(totals[group] > 0, centred - means[group], 0).to(rewards.dtype)


def to_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """Every model token of a row gets the row's advantage.

    Args:
      advantages: ``[N]`` float.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.

    Returns:
      ``[N, T]``, 0 where ``mask`` is False.

    Raises:
      ValueError: if the numbers of rows differ.

    Example:
      >>> to_tokens(torch.tensor([0.5]), torch.tensor([[True, False, True]])).tolist()
      [[0.5, 0.0, 0.5]]
    """
    if advantages.shape != mask.shape[:1]:
        raise ValueError(
            f"advantages {tuple(advantages.shape)} must be [N], one for each row of "
            f"mask {tuple(mask.shape)}"
        )
    return torch.where(mask, advantages.detach()[:, None], 0)


def whiten(advantages: Tensor, mask: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Give the advantages of a batch mean 0 and standard deviation 1 over its model tokens.

        A'_t = (A_t - mean) / (std + eps)

    ``std`` is the sample standard deviation. Call it on the whole batch, before that is
    split into micro-batches: mean and deviation of a part are not those of the whole.

    Limits: advantages that are all alike become 0.

    Args:
      advantages: ``[N, T]`` float; ignored where masked, NaN included.
      mask: ``[N, T]`` bool, True on tokens sampled by the model.
      eps: Added to the standard deviation, in the unit of the advantages.

    Returns:
      ``[N, T]`` in standard deviations, 0 where masked; detached.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> mask = torch.tensor([[True, False, True]])
      >>> whiten(torch.tensor([[1.0, 9.0, 3.0]]), mask, eps=0).tolist()
      [[-0.7071067690849304, 0.0, 0.7071067690849304]]
    """
    require_same_shape(advantages=advantages, mask=mask)
    of_model = advantages.detach()[mask]
    of_model = of_model.to(torch.promote_types(of_model.dtype, torch.float32))
    above = of_model - of_model[:1]  # exactly 0 if all are alike
    centred = above - above.mean()
    std = (centred.square().sum() / max(1, centred.numel() - 1)).sqrt()
    white = torch.where(centred == 0, 0, centred / (std + eps))
    return torch.zeros_like(advantages).masked_scatter(mask, white.to(advantages.dtype))


def centred_by_group(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards minus their group's mean ``[N]``, group index ``[N]``, rows per group ``[G]``."""
    require_same_shape(rewards=rewards, groups=groups)
    if rewards.dim() != 1 or not rewards.dtype.is_floating_point:
        raise ValueError(f"rewards must be float [N], got {rewards.dtype} {tuple(rewards.shape)}")
    if bool(rewards.isnan().any()):
        raise ValueError("a reward is NaN: rows that were never scored must be left out first")
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    unique, group = cast(
        "tuple[Tensor, Tensor]",
        torch.unique(groups, return_inverse=True),  # pyright: ignore[reportUnknownMemberType]
    )
    zeros = torch.zeros(len(unique), dtype=rewards.dtype, device=rewards.device)
    counts = zeros.index_add(0, group, torch.ones_like(rewards))
    # Counted from the least reward of the group, rewards that are all alike are exactly 0;
    # the mean of three 0.1 is not exactly 0.1, and eps would not hide the rest.
    least = zeros.scatter_reduce(0, group, rewards, "amin", include_self=False)
    above = rewards - least[group]
    means = zeros.index_add(0, group, above) / counts
    return above - means[group], group, counts
