"""Trees as flat arrays: sums upward and downward, depths and paths.

``parents`` ``[M]`` int64 holds the node above each node, -1 for a root, and a parent always
has a lower number than its children. ``leaves`` ``[N]`` holds the node of each scored leaf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.spans import require_same_shape


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
    check_tree(parents, leaves)
    counts = torch.zeros_like(parents)
    counts[leaves] = 1
    return summed_upward(parents, torch.ones_like(parents), counts)


def paid_before(parents: Tensor, turn_rewards: Tensor) -> Tensor:
    """What was paid on the way to each node, from the root to its parent.

    Args:
      parents: ``[M]`` int64, the node above, -1 for a root; lower than the node's number.
      turn_rewards: ``[M]`` float, what was paid for each node.

    Returns:
      ``[M]`` in units of reward.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> paid_before(torch.tensor([-1, 0, 1]), torch.tensor([0.0, 0.5, 1.0])).tolist()
      [0.0, 0.0, 0.5]
    """
    require_same_shape(parents=parents, turn_rewards=turn_rewards)
    paid, above = torch.zeros_like(turn_rewards), parents
    while bool((above >= 0).any()):
        at = above.clamp(min=0)
        paid = paid + torch.where(above >= 0, turn_rewards[at], 0)
        above = torch.where(above >= 0, parents[at], -1)
    return paid


def summed_upward(parents: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """``start`` plus the weighted sums of the children, from the deepest nodes upward."""
    depths, _ = depths_and_roots(parents)
    sums = start.clone()
    for depth in range(int(depths.max()) if len(depths) else 0, 0, -1):
        nodes = (depths == depth).nonzero()[:, 0]
        sums.index_add_(0, parents[nodes], weights[nodes] * sums[nodes])
    return sums


def depths_and_roots(parents: Tensor) -> tuple[Tensor, Tensor]:
    """How many nodes stand above each node ``[M]``, and the topmost of them ``[M]``."""
    roots = torch.arange(len(parents), device=parents.device)
    depths = torch.zeros_like(roots)
    above = parents
    while bool((above >= 0).any()):
        depths = depths + (above >= 0)
        roots = torch.where(above >= 0, above, roots)
        above = torch.where(above >= 0, parents[above], -1)
    return depths, roots


def paths(parents: Tensor, leaves: Tensor) -> Tensor:
    """The nodes from the root to each leaf, ``[N, D]``; beyond its depth, the leaf again."""
    depths, _ = depths_and_roots(parents)
    at, columns = leaves, [leaves]
    for depth in range(int(depths[leaves].max()) if len(leaves) else 0, 0, -1):
        at = torch.where(depths[at] == depth, parents[at], at)
        columns.append(at)
    return torch.stack(columns[::-1], 1)


def check_tree(parents: Tensor, leaves: Tensor) -> None:
    """Refuse what is no forest of nodes with scored leaves."""
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
