"""Credit for the turns of a search tree: values from the leaves upward, then advantages.

The trees of a batch are one flat array of M nodes. ``parents`` ``[M]`` int64 holds the
node above, -1 for a root, and a parent always has a lower number than its children.
``leaves`` ``[N]`` holds the node of each scored leaf, ``rewards`` ``[N]`` its reward. A
node with no scored leaf below it (its branches failed) has value and advantage 0 and
takes no part in any mean.

The three value functions take the same arguments, and so do the four advantages: any
value goes with any advantage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.advantages.group import centred_by_group
from spanwise.spans import require_same_shape


def normalised_leaf_rewards(rewards: Tensor, groups: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Rewards in standard deviations of their tree's leaves.

        R'_i = (R_i - mean) / (std + eps)

    ``std`` is the population standard deviation, as in AT²PO (``group_advantages`` uses
    the sample one).

    Limits: a tree whose leaves all score alike carries no signal: exactly 0.

    Args:
      rewards: ``[N]`` float, one per scored leaf.
      groups: ``[N]`` int64, which tree the leaf is of.
      eps: Added to the standard deviation, in units of reward.

    Returns:
      ``[N]`` in standard deviations of the tree; detached.

    Raises:
      ValueError: if a reward is NaN or the shapes differ.

    Example:
      >>> normalised_leaf_rewards(
      ...     torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0, 0, 1]), eps=0).tolist()
      [1.0, -1.0, 0.0]

    References:
      Zong et al., AT²PO, arXiv:2601.04767.
    """
    centred, group, counts = centred_by_group(rewards, groups)
    squares = torch.zeros_like(counts).index_add(0, group, centred.square())
    std = (squares / counts).sqrt()[group]
    return torch.where(centred == 0, 0, centred / (std + eps)).to(rewards.dtype)


def child_softmax_values(
    parents: Tensor, entropies: Tensor, leaves: Tensor, rewards: Tensor
) -> Tensor:
    """A node is worth its children's values, weighted by a softmax over their entropies.

    The paper's setting: a turn that was sampled with little certainty says more about its
    parent than one of several near-copies.

        V(leaf) = R
        V(n)    = sum over children c of w_c V(c),   w = softmax of H(c)

    Limits: equal entropies are ``child_mean_values``; a chain has its leaf's reward at
    every node.

    Args:
      parents: ``[M]`` int64, the node above, -1 for a root; lower than the node's number.
      entropies: ``[M]`` float, nats per token, ``H`` of each node; a root's is ignored.
      leaves: ``[N]`` int64, the node of each scored leaf.
      rewards: ``[N]`` float, most often from ``normalised_leaf_rewards``.

    Returns:
      ``[M]`` in the rewards' unit, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if the arrays are no tree, or a reward or a needed entropy is NaN.

    Example:
      >>> child_softmax_values(
      ...     parents=torch.tensor([-1, 0, 0]), entropies=torch.tensor([0.0, 1.0, 1.0]),
      ...     leaves=torch.tensor([1, 2]), rewards=torch.tensor([1.0, 0.0])).tolist()
      [0.5, 1.0, 0.0]

    References:
      Zong et al., AT²PO, arXiv:2601.04767.
    """
    require_same_shape(parents=parents, entropies=entropies)
    rewards = _checked_rewards(leaves, rewards)
    valued = leaf_counts(parents, leaves) > 0
    if bool((entropies.isnan() & valued & (parents >= 0)).any()):
        raise ValueError("an entropy is NaN at a node that leads to a scored leaf")
    entropies = entropies.detach().to(rewards.dtype)
    # Relative to the most uncertain sibling, no exponential overflows.
    family = torch.where(parents >= 0, parents, len(parents))
    most = rewards.new_full((len(parents) + 1,), -torch.inf)
    most = most.scatter_reduce(0, family, torch.where(valued, entropies, -torch.inf), "amax")
    weights = torch.where(valued, (entropies - most[family]).exp(), 0)
    return _values_upward(parents, weights, leaves, rewards)


def child_mean_values(
    parents: Tensor, entropies: Tensor, leaves: Tensor, rewards: Tensor
) -> Tensor:
    """A node is worth the plain mean of its children's values.

        V(leaf) = R
        V(n)    = mean over children c of V(c)

    Limits: a chain has its leaf's reward at every node.

    Args:
      parents: As in ``child_softmax_values``, like all other arguments.
      entropies: ``[M]``; not used.
      leaves: ``[N]``.
      rewards: ``[N]``.

    Returns:
      ``[M]`` in the rewards' unit, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if the arrays are no tree, or a reward is NaN.

    Example:
      Node 1 has the leaves 3 and 4; node 2 is a leaf.

      >>> child_mean_values(
      ...     parents=torch.tensor([-1, 0, 0, 1, 1]), entropies=torch.zeros(5),
      ...     leaves=torch.tensor([2, 3, 4]), rewards=torch.tensor([1.0, 1.0, 0.0])).tolist()
      [0.75, 0.5, 1.0, 1.0, 0.0]
    """
    rewards = _checked_rewards(leaves, rewards)
    weights = (leaf_counts(parents, leaves) > 0).to(rewards.dtype)
    return _values_upward(parents, weights, leaves, rewards)


def leaf_mean_values(parents: Tensor, entropies: Tensor, leaves: Tensor, rewards: Tensor) -> Tensor:
    """A node is worth the mean reward of all leaves below it.

        V(n) = mean over leaves l below n of R(l)

    Limits: a chain has its leaf's reward at every node; with normalised rewards the root
    has 0.

    Args:
      parents: As in ``child_softmax_values``, like all other arguments.
      entropies: ``[M]``; not used.
      leaves: ``[N]``.
      rewards: ``[N]``.

    Returns:
      ``[M]`` in the rewards' unit, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if the arrays are no tree, or a reward is NaN.

    Example:
      The tree of ``child_mean_values``: three leaves, two of them at 1.

      >>> leaf_mean_values(
      ...     parents=torch.tensor([-1, 0, 0, 1, 1]), entropies=torch.zeros(5),
      ...     leaves=torch.tensor([2, 3, 4]), rewards=torch.tensor([0.0, 1.0, 0.5])).tolist()
      [0.5, 0.75, 0.0, 1.0, 0.5]
    """
    rewards = _checked_rewards(leaves, rewards)
    weights = leaf_counts(parents, leaves).to(rewards.dtype)
    return _values_upward(parents, weights, leaves, rewards)


def leaf_counts(parents: Tensor, leaves: Tensor) -> Tensor:
    """The number of scored leaves at or below each node.

    Also the number of training rows that a node's tokens stand in.

    Args:
      parents: ``[M]`` int64, the node above, -1 for a root; lower than the node's number.
      leaves: ``[N]`` int64, the node of each scored leaf.

    Returns:
      ``[M]`` int64.

    Raises:
      ValueError: if the arrays are no tree, a leaf stands twice or has children.

    Example:
      >>> leaf_counts(torch.tensor([-1, 0, 0, 1, 1]), torch.tensor([2, 3])).tolist()
      [2, 1, 1, 1, 0]
    """
    _check_tree(parents, leaves)
    counts = torch.zeros_like(parents)
    counts[leaves] = 1
    return _summed_upward(parents, torch.ones_like(parents), counts)


def node_value(values: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The advantage of a turn is its value (the paper's best).

        A(n) = V(n)

    Limits: every node of a chain has the reward of its leaf, as if there were no tree.

    Args:
      values: ``[M]`` float, from one of the value functions.
      parents: ``[M]`` int64; not used.
      leaves: ``[N]`` int64; not used.

    Returns:
      ``[M]`` in the unit of the values; detached.

    Example:
      >>> node_value(torch.tensor([0.5, 1.0]), torch.tensor([-1, 0]), torch.tensor([1])).tolist()
      [0.5, 1.0]
    """
    require_same_shape(values=values, parents=parents)
    return values.detach()


def over_parent(values: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The advantage of a turn is what it changed: its value minus its parent's.

        A(n) = V(n) - V(parent)

    Limits: a root, and a turn without siblings, get 0.

    Args:
      values: ``[M]`` float, from one of the value functions.
      parents: ``[M]`` int64, the node above, -1 for a root.
      leaves: ``[N]`` int64, the node of each scored leaf.

    Returns:
      ``[M]`` in the unit of the values, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if the arrays are no tree.

    Example:
      >>> over_parent(torch.tensor([0.5, 1.0, 0.0]), torch.tensor([-1, 0, 0]),
      ...             torch.tensor([1, 2])).tolist()
      [0.0, 0.5, -0.5]
    """
    require_same_shape(values=values, parents=parents)
    own = torch.arange(len(parents), device=parents.device)
    return _difference(values, torch.where(parents >= 0, parents, own), parents, leaves)


def over_root(values: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The advantage of a turn is its value minus that of the prompt.

        A(n) = V(n) - V(root)

    Limits: a root gets 0, and so does every node of a chain.

    Args:
      values: ``[M]`` float, from one of the value functions.
      parents: ``[M]`` int64, the node above, -1 for a root.
      leaves: ``[N]`` int64, the node of each scored leaf.

    Returns:
      ``[M]`` in the unit of the values, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if the arrays are no tree.

    Example:
      >>> over_root(torch.tensor([0.5, 1.0, 0.0, 0.0]), torch.tensor([-1, 0, 0, 2]),
      ...           torch.tensor([1, 3])).tolist()
      [0.0, 0.5, -0.5, -0.5]
    """
    require_same_shape(values=values, parents=parents)
    return _difference(values, _depths_and_roots(parents)[1], parents, leaves)


def over_both(values: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The sum of ``over_parent`` and ``over_root``: local and global credit.

        A(n) = (V(n) - V(parent)) + (V(n) - V(root))

    Args:
      values: ``[M]`` float, from one of the value functions.
      parents: ``[M]`` int64, the node above, -1 for a root.
      leaves: ``[N]`` int64, the node of each scored leaf.

    Returns:
      ``[M]`` in the unit of the values, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if the arrays are no tree.

    Example:
      >>> over_both(torch.tensor([0.5, 1.0, 0.0, 0.0]), torch.tensor([-1, 0, 0, 2]),
      ...           torch.tensor([1, 3])).tolist()
      [0.0, 1.0, -1.0, -0.5]
    """
    return over_parent(values, parents, leaves) + over_root(values, parents, leaves)


def gather_nodes(advantages: Tensor, nodes: Tensor) -> Tensor:
    """Every model token gets the advantage of the turn that it belongs to.

    Args:
      advantages: ``[M]`` float, one per node.
      nodes: ``[N, T]`` int64, the node of each model token, -1 where masked.

    Returns:
      ``[N, T]``, 0 where masked; detached.

    Raises:
      ValueError: if ``nodes`` names a node that is not there.

    Example:
      >>> gather_nodes(torch.tensor([0.0, 0.5, -1.0]), torch.tensor([[-1, 1, 2]])).tolist()
      [[0.0, 0.5, -1.0]]
    """
    if nodes.numel() and int(nodes.max()) >= len(advantages):
        raise ValueError(f"nodes names node {int(nodes.max())} of only {len(advantages)}")
    if len(advantages) == 0:
        return torch.zeros(nodes.shape, dtype=advantages.dtype, device=advantages.device)
    return torch.where(nodes >= 0, advantages.detach()[nodes.clamp(min=0)], 0)


def _values_upward(parents: Tensor, weights: Tensor, leaves: Tensor, rewards: Tensor) -> Tensor:
    """Values of all nodes: each the mean of its children's, weighted by ``weights`` ``[M]``."""
    inner = parents >= 0
    totals = torch.zeros_like(weights).index_add(0, parents[inner], weights[inner])
    shares = torch.zeros_like(weights)
    # Unscored nodes have weight 0, and among themselves a total of 0.
    shares[inner] = torch.where(weights[inner] > 0, weights[inner] / totals[parents[inner]], 0)
    values = torch.zeros_like(weights).index_put((leaves,), rewards)
    return _summed_upward(parents, shares, values)


def _summed_upward(parents: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """``start`` plus the weighted sums of the children, from the deepest nodes upward."""
    depths, _ = _depths_and_roots(parents)
    sums = start.clone()
    for depth in range(int(depths.max()) if len(depths) else 0, 0, -1):
        nodes = (depths == depth).nonzero()[:, 0]
        sums.index_add_(0, parents[nodes], weights[nodes] * sums[nodes])
    return sums


def _depths_and_roots(parents: Tensor) -> tuple[Tensor, Tensor]:
    """How many nodes stand above each node ``[M]``, and the topmost of them ``[M]``."""
    roots = torch.arange(len(parents), device=parents.device)
    depths = torch.zeros_like(roots)
    above = parents
    while bool((above >= 0).any()):
        depths = depths + (above >= 0)
        roots = torch.where(above >= 0, above, roots)
        above = torch.where(above >= 0, parents[above], -1)
    return depths, roots


def _difference(values: Tensor, baseline: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """Value minus the value of the node ``baseline`` ``[M]``; 0 for unscored nodes."""
    values = values.detach()
    return torch.where(leaf_counts(parents, leaves) > 0, values - values[baseline], 0)


def _checked_rewards(leaves: Tensor, rewards: Tensor) -> Tensor:
    """Rewards to add up with, float32 or wider."""
    require_same_shape(leaves=leaves, rewards=rewards)
    if not rewards.dtype.is_floating_point:
        raise ValueError(f"rewards must be float [N], got {rewards.dtype}")
    if bool(rewards.isnan().any()):
        raise ValueError("a reward is NaN: leaves that were never scored must be left out first")
    return rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))


def _check_tree(parents: Tensor, leaves: Tensor) -> None:
    if parents.dtype != torch.int64 or parents.dim() != 1:
        raise ValueError(f"parents must be int64 [M], got {parents.dtype} {tuple(parents.shape)}")
    if bool((parents >= torch.arange(len(parents), device=parents.device)).any()):
        raise ValueError("a parent must have a lower number than its children, a root has -1")
    if leaves.dtype != torch.int64 or leaves.dim() != 1:
        raise ValueError(f"leaves must be int64 [N], got {leaves.dtype} {tuple(leaves.shape)}")
    if bool(((leaves < 0) | (leaves >= len(parents))).any()):
        raise ValueError(f"leaves must name nodes, 0 to {len(parents) - 1}")
    if len(leaves) and int(torch.bincount(leaves).max()) > 1:
        raise ValueError("a leaf stands twice in leaves: a trajectory must not count twice")
    if bool(torch.isin(leaves, parents).any()):
        raise ValueError("a leaf has children: only the end of a trajectory has a reward")
