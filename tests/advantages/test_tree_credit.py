"""Tree credit: a tree worked by hand, chains, siblings swapped, and a recursive oracle.

Rewards on the way are in ``test_rewards_on_the_way``.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.advantages import (
    child_entropy_values,
    child_mean_values,
    child_softmax_values,
    gather_nodes,
    leaf_counts,
    leaf_mean_values,
    node_value,
    over_both,
    over_parent,
    over_root,
)

VALUES = [child_softmax_values, child_entropy_values, child_mean_values, leaf_mean_values]
ADVANTAGES = [node_value, over_parent, over_root, over_both]

# The tree worked by hand. Rewards in brackets, entropies after H; node 6 has no scored leaf.
#
#            0 ──┬── 1 (H ln 3) ──┬── 3 [4] (H ln 2)
#                │                └── 4 [1] (H 0)
#                ├── 2 [-3] (H 0)
#                └── 5 (H ln 2) ───── 6 failed
PARENTS = torch.tensor([-1, 0, 0, 1, 1, 0, 5])
LN_2, LN_3 = math.log(2), math.log(3)
ENTROPIES = torch.tensor([7.0, LN_3, 0, LN_2, 0, LN_2, 1], dtype=torch.float64)
LEAVES = torch.tensor([3, 4, 2])
NOTHING_PAID = torch.zeros(7).double()
REWARDS = torch.tensor([4.0, 1.0, -3.0]).double()

# softmax at node 1: weights 2 : 1, so (2 * 4 + 1) / 3 = 3; at the root (node 5 has no value):
#   weights 3 : 1, so (3 * 3 + 1 * -3) / 4 = 1.5
# share of entropy: nodes 4 and 2 have none, so node 3 is all of node 1, and node 1 of the root.
# child mean: (4 + 1) / 2 = 2.5; (2.5 - 3) / 2 = -.25.   leaf mean: 2.5; (4 + 1 - 3) / 3 = 2/3
WORKED_VALUES = {
    child_softmax_values: [1.5, 3, -3, 4, 1, 0, 0],
    child_entropy_values: [4, 4, -3, 4, 1, 0, 0],
    child_mean_values: [-0.25, 2.5, -3, 4, 1, 0, 0],
    leaf_mean_values: [2 / 3, 2.5, -3, 4, 1, 0, 0],
}
# From the softmax values: V - V(parent), V - V(root = 1.5), and their sum.
WORKED_ADVANTAGES = {
    node_value: [1.5, 3, -3, 4, 1, 0, 0],
    over_parent: [0, 1.5, -4.5, 1, -2, 0, 0],
    over_root: [0, 1.5, -4.5, 2.5, -0.5, 0, 0],
    over_both: [0, 3, -9, 3.5, -2.5, 0, 0],
}


@pytest.mark.parametrize("value", VALUES)
def test_values_of_the_worked_tree(value):
    got = value(PARENTS, ENTROPIES, LEAVES, REWARDS)
    assert got.tolist() == pytest.approx(WORKED_VALUES[value], abs=1e-12)


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_advantages_of_the_worked_tree(advantage):
    values = torch.tensor(WORKED_VALUES[child_softmax_values]).double()
    got = advantage(values, NOTHING_PAID, PARENTS, LEAVES)
    assert got.tolist() == pytest.approx(WORKED_ADVANTAGES[advantage], abs=1e-12)


def test_leaf_counts_of_the_worked_tree():
    assert leaf_counts(PARENTS, LEAVES).tolist() == [3, 2, 1, 1, 1, 0, 0]


@st.composite
def trees(draw):
    """A forest in which every childless node but some failed ones is a scored leaf.

    Some nodes have entropy 0, so that now and then a whole family does.
    """
    parents = [-1]
    for node in range(1, draw(st.integers(2, 14))):
        parents.append(draw(st.integers(-1, node - 1)))
    childless = [n for n in range(len(parents)) if n not in parents]
    scored = [n for n in childless if draw(st.integers(0, 3))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    entropies = torch.rand(len(parents), generator=generator, dtype=torch.float64) * 3
    entropies *= torch.rand(len(parents), generator=generator) > draw(st.sampled_from([0, 0.5, 1]))
    rewards = torch.randn(len(scored), generator=generator, dtype=torch.float64)
    return torch.tensor(parents), entropies, torch.tensor(scored, dtype=torch.int64), rewards


def recursive_value(value, node, parents, entropies, reward_of):
    """The value of a node from its definition; None without a scored leaf below."""
    if node in reward_of:
        return reward_of[node]
    children = [c for c in range(len(parents)) if parents[c] == node]
    if value is leaf_mean_values:
        below = [n for n in reward_of if is_below(n, node, parents)]
        return sum(reward_of[n] for n in below) / len(below) if below else None
    pairs = [(c, recursive_value(value, c, parents, entropies, reward_of)) for c in children]
    pairs = [(c, v) for c, v in pairs if v is not None]
    if not pairs:
        return None
    weights = [1.0 for _ in pairs]
    if value is child_softmax_values:
        weights = [math.exp(entropies[c]) for c, _ in pairs]
    if value is child_entropy_values and any(entropies[c] for c, _ in pairs):
        weights = [entropies[c] for c, _ in pairs]
    return sum(w * v for w, (_, v) in zip(weights, pairs, strict=True)) / sum(weights)


def is_below(node, ancestor, parents):
    while node >= 0 and node != ancestor:
        node = parents[node]
    return node == ancestor


@pytest.mark.parametrize("value", VALUES)
@given(tree=trees())
def test_values_follow_the_recursive_definition(value, tree):
    parents, entropies, leaves, rewards = tree
    reward_of = dict(zip(leaves.tolist(), rewards.tolist(), strict=True))
    expected = [
        recursive_value(value, n, parents.tolist(), entropies.tolist(), reward_of) or 0.0
        for n in range(len(parents))
    ]
    assert value(*tree).tolist() == pytest.approx(expected, abs=1e-12)


@given(tree=trees())
def test_leaf_counts_count_the_scored_leaves_below(tree):
    parents, _, leaves, _ = tree
    for node, count in enumerate(leaf_counts(parents, leaves).tolist()):
        assert count == sum(is_below(n, node, parents.tolist()) for n in leaves.tolist())


@pytest.mark.parametrize("value", VALUES)
@given(tree=trees())
def test_advantages_follow_their_definitions(value, tree):
    parents, _, leaves, _ = tree
    values = value(*tree)
    counts = leaf_counts(parents, leaves)
    for node in range(len(parents)):
        parent = node if parents[node] < 0 else int(parents[node])
        root = node
        while parents[root] >= 0:
            root = int(parents[root])
        valued = float(counts[node] > 0)
        to_parent = valued * float(values[node] - values[parent])
        to_root = valued * float(values[node] - values[root])
        paid = torch.zeros_like(values)
        got = [float(advantage(values, paid, parents, leaves)[node]) for advantage in ADVANTAGES]
        expected = [float(values[node]), to_parent, to_root, to_parent + to_root]
        assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_chain_has_trajectory_credit(value, length):
    """Every turn of a chain gets exactly its reward, as if there were no tree."""
    parents = torch.tensor([-1, *range(length - 1), -1, *range(length, 2 * length - 1)])
    entropies = torch.linspace(0, 50, 2 * length)
    leaves = torch.tensor([length - 1, 2 * length - 1])
    rewards = torch.tensor([0.3, -0.7])
    values = value(parents, entropies, leaves, rewards)
    assert torch.equal(values, rewards.repeat_interleave(length))
    paid = torch.zeros_like(values)
    assert torch.equal(node_value(values, paid, parents, leaves), values)
    for difference in (over_parent, over_root, over_both):
        assert not difference(values, paid, parents, leaves).any()


@pytest.mark.parametrize("value", VALUES)
@given(tree=trees(), seed=st.integers(0, 2**31))
def test_swapping_siblings_changes_nothing(value, tree, seed):
    """Nodes renumbered in any order that keeps parents first, leaves in any order."""
    parents, entropies, leaves, rewards = tree
    generator = torch.Generator().manual_seed(seed)
    depths = [0] * len(parents)
    for node, parent in enumerate(parents.tolist()):
        depths[node] = depths[parent] + 1 if parent >= 0 else 0
    keys = torch.tensor(depths) + torch.rand(len(parents), generator=generator) * 0.9
    order = keys.argsort()  # by depth, siblings and cousins at random
    number = order.argsort()
    new_parents = torch.where(parents[order] >= 0, number[parents[order]], -1)
    shuffle = torch.randperm(len(leaves), generator=generator)
    new_leaves = number[leaves][shuffle]
    before = value(parents, entropies, leaves, rewards)
    after = value(new_parents, entropies[order], new_leaves, rewards[shuffle])
    torch.testing.assert_close(after, before[order], rtol=0, atol=1e-12)
    paid = torch.rand(len(parents), generator=generator).double()
    for advantage in ADVANTAGES:
        torch.testing.assert_close(
            advantage(after, paid[order], new_parents, new_leaves),
            advantage(before, paid, parents, leaves)[order],
            rtol=0,
            atol=1e-12,
        )


@given(tree=trees(), shift=st.floats(-5, 5))
def test_softmax_depends_on_differences_of_entropy_alone(tree, shift):
    parents, entropies, leaves, rewards = tree
    values = child_softmax_values(parents, entropies, leaves, rewards)
    shifted = child_softmax_values(parents, entropies + shift, leaves, rewards)
    torch.testing.assert_close(values, shifted, rtol=0, atol=1e-12)
    alike = child_softmax_values(parents, torch.full_like(entropies, shift), leaves, rewards)
    means = child_mean_values(parents, entropies, leaves, rewards)
    torch.testing.assert_close(alike, means, rtol=0, atol=1e-12)


@given(tree=trees(), power=st.integers(-20, 20))
def test_shares_depend_on_ratios_of_entropy_alone(tree, power):
    parents, entropies, leaves, rewards = tree
    values = child_entropy_values(parents, entropies, leaves, rewards)
    scaled = child_entropy_values(parents, entropies * 2.0**power, leaves, rewards)
    assert torch.equal(values, scaled)
    means = child_mean_values(parents, entropies, leaves, rewards)
    for alike in (0.0, 3.0):
        equal = torch.full_like(entropies, alike)
        values = child_entropy_values(parents, equal, leaves, rewards)
        torch.testing.assert_close(values, means, rtol=0, atol=1e-12)


def test_shares_of_entropy_by_hand():
    """Of families without entropy the mean; of 3 : 1 three quarters; the root's is not read."""
    parents, leaves = torch.tensor([-1, 0, 0, 1, 1, 2, 2]), torch.tensor([3, 4, 5, 6])
    entropies = torch.tensor([-9.0, 0.5, 1.5, 0.0, -0.0, 0.25, 0.75])
    values = child_entropy_values(parents, entropies, leaves, torch.tensor([4.0, 2, 8, 0]))
    assert values.tolist() == [0.25 * 3 + 0.75 * 2, 3, 2, 4, 2, 8, 0]


def test_an_entropy_below_zero_is_refused_where_it_counts():
    for node in (0, 5, 6):  # a root, and nodes that lead to no scored leaf
        below = changed(node, -1, ENTROPIES)
        values = child_entropy_values(PARENTS, below, LEAVES, REWARDS)
        assert values.tolist() == WORKED_VALUES[child_entropy_values]
    with pytest.raises(ValueError, match="entropy is below 0"):
        child_entropy_values(PARENTS, changed(4, -1e-6, ENTROPIES), LEAVES, REWARDS)


def test_huge_entropies_do_not_overflow():
    values = child_softmax_values(
        torch.tensor([-1, 0, 0]),
        torch.tensor([0.0, 1e4, 1e4]),
        LEAVES[:0].new_tensor([1, 2]),
        torch.tensor([1.0, 0.0]),
    )
    assert values.tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("value", VALUES)
def test_failed_branches_take_no_weight(value):
    with_failed = value(PARENTS, ENTROPIES, LEAVES, REWARDS)
    nan_where_failed = ENTROPIES.clone()
    nan_where_failed[[5, 6]] = torch.nan
    assert torch.equal(with_failed, value(PARENTS, nan_where_failed, LEAVES, REWARDS))
    without = value(PARENTS[:5], ENTROPIES[:5], LEAVES, REWARDS)
    assert torch.equal(with_failed[:5], without)


def test_credit_reaches_the_tokens_of_its_turn():
    nodes = torch.tensor([[-1, 1, 1, -1, 3], [-1, 2, -1, -1, -1]])
    credit = torch.tensor([9.0, 0.5, -1.0, 2.0])
    assert gather_nodes(credit, nodes).tolist() == [[0, 0.5, 0.5, 0, 2], [0, -1, 0, 0, 0]]
    with pytest.raises(ValueError, match="node 3 of only 3"):
        gather_nodes(credit[:3], nodes)


def changed(index, value, tensor):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize("value", [child_softmax_values, child_entropy_values])
@pytest.mark.parametrize(
    ("parents", "entropies", "leaves", "rewards", "message"),
    [
        (changed(1, 3, PARENTS), ENTROPIES, LEAVES, REWARDS, "lower number than its children"),
        (PARENTS, ENTROPIES, changed(0, 7, LEAVES), REWARDS, "0 to 6"),
        (PARENTS, ENTROPIES, changed(0, 4, LEAVES), REWARDS, "stands twice"),
        (PARENTS, ENTROPIES, changed(0, 1, LEAVES), REWARDS, "has children"),
        (PARENTS, ENTROPIES, LEAVES, changed(0, torch.nan, REWARDS), "never scored"),
        (PARENTS, ENTROPIES, LEAVES[:2], REWARDS, r"leaves \(2,\), returns \(3,\)"),
        (PARENTS, changed(3, torch.nan, ENTROPIES), LEAVES, REWARDS, "entropy is NaN"),
        (PARENTS.int(), ENTROPIES, LEAVES, REWARDS, "parents must be int64"),
    ],
)
def test_bad_input_is_one_clear_error(value, parents, entropies, leaves, rewards, message):
    with pytest.raises(ValueError, match=message):
        value(parents, entropies, leaves, rewards)
