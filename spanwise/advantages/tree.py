"""Credit for the turns of a search tree: values from the leaves upward, then advantages.

The trees of a batch are one flat array of M nodes with N scored leaves:

    parents    [M] int64, the node above; -1 for a root, and always lower than the node itself
    entropies  [M] float, H of each node in nats per token; that of a root is ignored
    leaves     [N] int64, the node of each scored leaf
    returns    [N] float, what each leaf's trajectory was paid, most often normalised
    values     [M] float, from one of the value functions, which all take the same arguments
    paid       [M] float, what had been paid before each node, from ``normalised_returns``

A node with no scored leaf below it (its branches failed) has value and advantage 0 and takes
no part in any mean. A value is that of whole trajectories through a node; what had been paid
before it is no doing of its turn, and the four advantages, ``node_value`` to ``over_both``,
take it off. Any value goes with any advantage. All of them raise ``ValueError`` if the arrays
are no tree, differ in shape, or hold NaN where they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanwise.advantages.group import centred_by_group
from spanwise.advantages.tree_arrays import (
    check_tree,
    depths_and_roots,
    leaf_counts,
    paid_before,
    paths,
    summed_upward,
)
from spanwise.spans import require_same_shape


def normalised_returns(
    parents: Tensor, leaves: Tensor, returns: Tensor, turn_rewards: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Returns, and what of them was paid on the way, in standard deviations of the tree.

    A leaf ``l`` has the return ``G_l``, of which ``P_l(d)`` was paid for the turns above depth
    ``d`` on its path; what was paid at the leaf itself is part of no ``P``.

        G'_l = (G_l - mean G) / sigma
        P'_n = (P_n - mean P(d)) / sigma            for a node n at depth d
        sigma = max over d of std(G - P(d)) + eps

    Means and population deviations are over the tree's leaves. ``G' - P'`` is thus the
    return to go, less the mean return to go at that depth. All turns have one scale, so that
    one at which little is at stake moves little. It is the largest deviation because returns
    may be alike where returns to go are not (1 and then 0, 0 and then 1), and a deviation
    near 0 would blow up the difference.

    Limits: with rewards at the leaves alone ``P'`` is 0 and ``G'`` the leaves' rewards in
    their deviations, as in AT²PO (``group_advantages`` uses the sample deviation). A tree
    whose turns are all paid alike carries no signal: exactly 0.

    Args:
      parents: ``[M]`` int64.
      leaves: ``[N]`` int64.
      returns: ``[N]`` float, all that was paid on the way to each leaf and at it.
      turn_rewards: ``[M]`` float, what was paid for each node.
      eps: Added to the standard deviation, in units of reward.

    Returns:
      ``G'`` ``[N]`` and ``P'`` ``[M]``, 0 for nodes without a scored leaf below; detached.

    Example:
      Node 1 is paid 2 and leads to node 3, which is paid nothing, like node 2. Node 3 shares
      in the return of 2 and is not to be praised for it.

      >>> normalised_returns(
      ...     parents=torch.tensor([-1, 0, 0, 1]), leaves=torch.tensor([2, 3]),
      ...     returns=torch.tensor([0.0, 2.0]), turn_rewards=torch.tensor([0.0, 2.0, 0.0, 0.0]),
      ...     eps=0)
      (tensor([-1.,  1.]), tensor([0., 0., 0., 1.]))

    References:
      Zong et al., AT²PO, arXiv:2601.04767.
    """
    check_tree(parents, leaves)
    require_same_shape(parents=parents, turn_rewards=turn_rewards)
    returns = _checked_returns(leaves, returns)
    before = paid_before(parents, turn_rewards.detach().to(returns.dtype))
    depths, roots = depths_and_roots(parents)
    path = paths(parents, leaves)
    num_depths = path.shape[1]
    at_depth = torch.arange(num_depths, device=parents.device)
    centred, _, _ = centred_by_group(returns, roots[leaves])
    of_depth = roots[leaves][:, None] * num_depths + at_depth
    paid, group, counts = centred_by_group(before[path].flatten(), of_depth.flatten())
    squares = (centred.repeat_interleave(num_depths) - paid).square()
    variances = torch.zeros_like(counts).index_add(0, group, squares) / counts
    scale = variances.view(-1, num_depths).amax(1).sqrt()[group // num_depths] + eps
    paid = torch.where(paid == 0, 0, paid / scale).view_as(path)
    on_path = at_depth <= depths[leaves][:, None]
    paid_of_nodes = torch.zeros_like(before).index_put((path[on_path],), paid[on_path])
    return torch.where(centred == 0, 0, centred / scale.view_as(path)[:, 0]), paid_of_nodes


def child_softmax_values(
    parents: Tensor, entropies: Tensor, leaves: Tensor, returns: Tensor
) -> Tensor:
    """A node is worth its children's values, weighted by a softmax over their entropies.

    What the official code of AT²PO runs, and its launch script asks for: a turn that was
    sampled with little certainty says more about its parent than one of several near-copies.
    ``child_entropy_values`` is the other reading of the paper.

        V(leaf) = G
        V(n)    = sum over children c of w_c V(c),   w = softmax of H(c)

    Limits: equal entropies are ``child_mean_values``; a chain has its leaf's return at
    every node; the same number added to all entropies changes nothing.

    Args:
      parents: ``[M]`` int64.
      entropies: ``[M]`` float, nats per token.
      leaves: ``[N]`` int64.
      returns: ``[N]`` float.

    Returns:
      ``[M]`` in the unit of the returns, 0 for nodes without a scored leaf below; detached.

    Example:
      >>> child_softmax_values(
      ...     parents=torch.tensor([-1, 0, 0]), entropies=torch.tensor([0.0, 1.0, 1.0]),
      ...     leaves=torch.tensor([1, 2]), returns=torch.tensor([1.0, 0.0])).tolist()
      [0.5, 1.0, 0.0]

    References:
      Zong et al., AT²PO, arXiv:2601.04767.
    """
    returns = _checked_returns(leaves, returns)
    entropies, valued = _checked_entropies(parents, entropies, leaves, returns.dtype)
    # Relative to the most uncertain sibling, no exponential overflows.
    family = torch.where(parents >= 0, parents, len(parents))
    most = returns.new_full((len(parents) + 1,), -torch.inf)
    most = most.scatter_reduce(0, family, torch.where(valued, entropies, -torch.inf), "amax")
    weights = torch.where(valued, (entropies - most[family]).exp(), 0)
    return _values_upward(parents, weights, leaves, returns)


def child_entropy_values(
    parents: Tensor, entropies: Tensor, leaves: Tensor, returns: Tensor
) -> Tensor:
    """A node is worth its children's values, weighted by their share of the entropy.

    Another reading of AT²PO; its official code runs ``child_softmax_values``. Here a turn that
    was sampled with certainty, ``H = 0``, has no say at all beside one that was not.

        V(leaf) = G
        V(n)    = sum over children c of w_c V(c),   w_c = H(c) / sum over children of H

    Only children with a scored leaf count, in both sums. Where all of their entropies are 0
    the shares are undefined, and ``V(n)`` is the plain mean.

    Limits: equal entropies are ``child_mean_values``; a chain has its leaf's return at
    every node; all entropies times the same number change nothing.

    Args:
      parents: ``[M]`` int64.
      entropies: ``[M]`` float, nats per token, at least 0: means of negative log-probs.
      leaves: ``[N]`` int64.
      returns: ``[N]`` float.

    Returns:
      ``[M]`` in the unit of the returns, 0 for nodes without a scored leaf below; detached.

    Raises:
      ValueError: if an entropy is below 0 at a node that leads to a scored leaf, a root apart.

    Example:
      >>> child_entropy_values(
      ...     parents=torch.tensor([-1, 0, 0]), entropies=torch.tensor([0.0, 1.5, 0.5]),
      ...     leaves=torch.tensor([1, 2]), returns=torch.tensor([1.0, 0.0])).tolist()
      [0.75, 1.0, 0.0]

    References:
      Zong et al., AT²PO, arXiv:2601.04767.
    """
    returns = _checked_returns(leaves, returns)
    entropies, valued = _checked_entropies(parents, entropies, leaves, returns.dtype)
    weights = torch.where(valued & (parents >= 0), entropies, 0)
    if bool((weights < 0).any()):
        raise ValueError("an entropy is below 0; it must be a mean of negative log-probs")
    family = torch.where(parents >= 0, parents, len(parents))
    totals = weights.new_zeros(len(parents) + 1).index_add(0, family, weights)
    weights = torch.where(valued & (totals[family] == 0), 1, weights)
    return _values_upward(parents, weights, leaves, returns)


def child_mean_values(
    parents: Tensor, entropies: Tensor, leaves: Tensor, returns: Tensor
) -> Tensor:
    """A node is worth the plain mean of its children's values.

        V(leaf) = G
        V(n)    = mean over children c of V(c)

    Limits: a chain has its leaf's return at every node.

    Args:
      parents: ``[M]`` int64.
      entropies: ``[M]`` float; not used.
      leaves: ``[N]`` int64.
      returns: ``[N]`` float.

    Returns:
      ``[M]`` in the unit of the returns, 0 for nodes without a scored leaf below; detached.

    Example:
      Node 1 has the leaves 3 and 4; node 2 is a leaf.

      >>> child_mean_values(
      ...     parents=torch.tensor([-1, 0, 0, 1, 1]), entropies=torch.zeros(5),
      ...     leaves=torch.tensor([2, 3, 4]), returns=torch.tensor([1.0, 1.0, 0.0])).tolist()
      [0.75, 0.5, 1.0, 1.0, 0.0]
    """
    returns = _checked_returns(leaves, returns)
    weights = (leaf_counts(parents, leaves) > 0).to(returns.dtype)
    return _values_upward(parents, weights, leaves, returns)


def leaf_mean_values(parents: Tensor, entropies: Tensor, leaves: Tensor, returns: Tensor) -> Tensor:
    """A node is worth the mean return of all leaves below it.

        V(n) = mean over leaves l below n of G(l)

    Limits: a chain has its leaf's return at every node; with normalised returns the root
    has 0.

    Args:
      parents: ``[M]`` int64.
      entropies: ``[M]`` float; not used.
      leaves: ``[N]`` int64.
      returns: ``[N]`` float.

    Returns:
      ``[M]`` in the unit of the returns, 0 for nodes without a scored leaf below; detached.

    Example:
      The tree of ``child_mean_values``: three leaves, two of them at 1.

      >>> leaf_mean_values(
      ...     parents=torch.tensor([-1, 0, 0, 1, 1]), entropies=torch.zeros(5),
      ...     leaves=torch.tensor([2, 3, 4]), returns=torch.tensor([0.0, 1.0, 0.5])).tolist()
      [0.5, 0.75, 0.0, 1.0, 0.5]
    """
    returns = _checked_returns(leaves, returns)
    weights = leaf_counts(parents, leaves).to(returns.dtype)
    return _values_upward(parents, weights, leaves, returns)


def node_value(values: Tensor, paid: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The advantage of a turn is its value (the paper's best).

        A(n) = V(n) - P'(n)

    Limits: a node of a chain has its return to go, as if there were no tree; with rewards at
    the leaves alone, the reward of its leaf.

    Args:
      values: ``[M]`` float.
      paid: ``[M]`` float.
      parents: ``[M]`` int64; not used.
      leaves: ``[N]`` int64; not used.

    Returns:
      ``[M]`` in the unit of the values; detached.

    Example:
      >>> node_value(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.25]), torch.tensor([-1, 0]),
      ...            torch.tensor([1])).tolist()
      [0.5, 0.75]
    """
    require_same_shape(values=values, paid=paid, parents=parents)
    return (values - paid).detach()


def over_parent(values: Tensor, paid: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The advantage of a turn is what it changed: its value minus its parent's.

        A(n) = V(n) - V(parent)

    What had been paid before the turn is in both, and so is what its parent was paid: neither
    is credited to the turn.

    Limits: a root, and a turn without siblings, get 0.

    Args:
      values: ``[M]`` float.
      paid: ``[M]`` float; not used.
      parents: ``[M]`` int64.
      leaves: ``[N]`` int64.

    Returns:
      ``[M]`` in the unit of the values, 0 for nodes without a scored leaf below; detached.

    Example:
      >>> over_parent(torch.tensor([0.5, 1.0, 0.0]), torch.zeros(3), torch.tensor([-1, 0, 0]),
      ...             torch.tensor([1, 2])).tolist()
      [0.0, 0.5, -0.5]
    """
    require_same_shape(values=values, paid=paid, parents=parents)
    own = torch.arange(len(parents), device=parents.device)
    return _difference(values, torch.where(parents >= 0, parents, own), parents, leaves)


def over_root(values: Tensor, paid: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The advantage of a turn is its value minus that of the prompt.

        A(n) = V(n) - P'(n) - V(root)

    Limits: a root gets 0, and so does every node of a tree that is a single chain.

    Args:
      values: ``[M]`` float.
      paid: ``[M]`` float.
      parents: ``[M]`` int64.
      leaves: ``[N]`` int64.

    Returns:
      ``[M]`` in the unit of the values, 0 for nodes without a scored leaf below; detached.

    Example:
      >>> over_root(torch.tensor([0.5, 1.0, 0.0, 0.0]), torch.zeros(4),
      ...           torch.tensor([-1, 0, 0, 2]), torch.tensor([1, 3])).tolist()
      [0.0, 0.5, -0.5, -0.5]
    """
    to_go = node_value(values, paid, parents, leaves)
    return _difference(to_go, depths_and_roots(parents)[1], parents, leaves)


def over_both(values: Tensor, paid: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """The sum of ``over_parent`` and ``over_root``: local and global credit.

        A(n) = (V(n) - V(parent)) + (V(n) - P'(n) - V(root))

    Args:
      values: ``[M]`` float.
      paid: ``[M]`` float.
      parents: ``[M]`` int64.
      leaves: ``[N]`` int64.

    Returns:
      ``[M]`` in the unit of the values, 0 for nodes without a scored leaf below; detached.

    Example:
      >>> over_both(torch.tensor([0.5, 1.0, 0.0, 0.0]), torch.zeros(4),
      ...           torch.tensor([-1, 0, 0, 2]), torch.tensor([1, 3])).tolist()
      [0.0, 1.0, -1.0, -0.5]
    """
    local = over_parent(values, paid, parents, leaves)
    return local + over_root(values, paid, parents, leaves)


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


def _values_upward(parents: Tensor, weights: Tensor, leaves: Tensor, returns: Tensor) -> Tensor:
    """Values of all nodes: each the mean of its children's, weighted by ``weights`` ``[M]``."""
    inner = parents >= 0
    totals = torch.zeros_like(weights).index_add(0, parents[inner], weights[inner])
    shares = torch.zeros_like(weights)
    # Unscored nodes have weight 0, and among themselves a total of 0.
    shares[inner] = torch.where(weights[inner] > 0, weights[inner] / totals[parents[inner]], 0)
    values = torch.zeros_like(weights).index_put((leaves,), returns)
    return summed_upward(parents, shares, values)


def _difference(values: Tensor, baseline: Tensor, parents: Tensor, leaves: Tensor) -> Tensor:
    """Value minus the value of the node ``baseline`` ``[M]``; 0 for unscored nodes."""
    values = values.detach()
    return torch.where(leaf_counts(parents, leaves) > 0, values - values[baseline], 0)


def _checked_entropies(
    parents: Tensor, entropies: Tensor, leaves: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Entropies to weight by, and ``[M]`` True at the nodes that lead to a scored leaf."""
    require_same_shape(parents=parents, entropies=entropies)
    valued = leaf_counts(parents, leaves) > 0
    if bool((entropies.isnan() & valued & (parents >= 0)).any()):
        raise ValueError("an entropy is NaN at a node that leads to a scored leaf")
    return entropies.detach().to(dtype), valued


def _checked_returns(leaves: Tensor, returns: Tensor) -> Tensor:
    """Returns to add up with, float32 or wider."""
    require_same_shape(leaves=leaves, returns=returns)
    if not returns.dtype.is_floating_point:
        raise ValueError(f"returns must be float [N], got {returns.dtype}")
    if bool(returns.isnan().any()):
        raise ValueError("a return is NaN: leaves that were never scored must be left out first")
    return returns.detach().to(torch.promote_types(returns.dtype, torch.float32))
