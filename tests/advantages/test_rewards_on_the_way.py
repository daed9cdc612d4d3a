"""Tree credit with rewards on the way: by hand, by its definition, and in its limits."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.advantages import (
    child_entropy_values,
    child_mean_values,
    child_softmax_values,
    leaf_mean_values,
    node_value,
    normalised_returns,
    over_both,
    over_parent,
    over_root,
    paid_before,
)
from spanwise.advantages.group import centred_by_group
from spanwise.advantages.tree_arrays import depths_and_roots

VALUES = [child_softmax_values, child_entropy_values, child_mean_values, leaf_mean_values]
ADVANTAGES = [node_value, over_parent, over_root, over_both]

# Rewards in brackets, entropies after H; node 6 has no scored leaf.
#
#            0 ──┬── 1 [2] (H ln 3) ──┬── 3 [4] (H ln 2)
#                │                    └── 4 [1] (H 0)
#                ├── 2 [-3] (H 0)
#                └── 5 [9] (H ln 2) ───── 6 failed
PARENTS = torch.tensor([-1, 0, 0, 1, 1, 0, 5])
ENTROPIES = torch.tensor([7.0, math.log(3), 0, math.log(2), 0, math.log(2), 1], dtype=torch.double)
LEAVES = torch.tensor([3, 4, 2])
TURN_REWARDS = torch.tensor([0.0, 2, -3, 4, 1, 9, 0]).double()
RETURNS = torch.tensor([6.0, 3, -3]).double()

# Returns 6 3 -3, mean 2: centred 4 1 -5, variance 42/3 = 14. At depth 2, 2 2 0 of that was
# paid, mean 4/3; to go 4 1 -3, variance 74/9 < 14. So all is in units of sqrt(14).
# Softmax at node 1: weights 2 : 1, (2 * 4 + 1) / 3 = 3; at the root 3 : 1, (9 - 5) / 4 = 1.
# Nodes 3 and 4 were preceded by 2 - 4/3 = 2/3 more than the mean: 10/3 is the 4 to come from
# node 3, less the mean of what is to come at depth 2, (4 + 1 - 3) / 3.
WORKED = {
    node_value: [1, 3, -5, 10 / 3, 1 / 3, 0, 0],
    over_parent: [0, 2, -6, 1, -2, 0, 0],
    over_root: [0, 2, -6, 7 / 3, -2 / 3, 0, 0],
    over_both: [0, 4, -12, 10 / 3, -8 / 3, 0, 0],
}


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_worked_tree(advantage):
    returns, paid = normalised_returns(PARENTS, LEAVES, RETURNS, TURN_REWARDS, eps=0)
    assert (returns * 14**0.5).tolist() == pytest.approx([4, 1, -5])
    assert (paid * 14**0.5).tolist() == pytest.approx([0, 0, 0, 2 / 3, 2 / 3, 0, 0])
    values = child_softmax_values(PARENTS, ENTROPIES, LEAVES, returns)
    got = advantage(values, paid, PARENTS, LEAVES) * 14**0.5
    assert got.tolist() == pytest.approx(WORKED[advantage], abs=1e-12)


def test_what_was_paid_before_a_node():
    assert paid_before(PARENTS, TURN_REWARDS).tolist() == [0, 0, 0, 2, 2, 0, 9]


@st.composite
def forests(draw):
    """Parents, entropies, leaves, returns and turn rewards; a root is paid nothing.

    Returns hold more than turns were paid, as they do when single tokens are paid too.
    """
    parents = [-1]
    for node in range(1, draw(st.integers(2, 14))):
        parents.append(draw(st.integers(-1, node - 1)))
    childless = [n for n in range(len(parents)) if n not in parents]
    leaves = torch.tensor([n for n in childless if draw(st.integers(0, 3))], dtype=torch.int64)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    entropies, rewards, of_tokens = torch.randn(3, len(parents), generator=generator).double()
    of_tokens = draw(st.sampled_from([0.0, 1.0])) * of_tokens[leaves]
    parents = torch.tensor(parents)
    rewards = torch.where(parents < 0, 0, rewards)
    returns = (paid_before(parents, rewards) + rewards)[leaves] + of_tokens
    return parents, entropies.abs(), leaves, returns, rewards


class Definition:
    """Values from their definition: a recursion over returns to go, in Python's numbers."""

    def __init__(self, value, parents, entropies, leaves, returns, rewards):
        self.value, self.entropies = value, entropies.tolist()
        self.parents, self.rewards = parents.tolist(), rewards.tolist()
        self.returns = dict(zip(leaves.tolist(), returns.tolist(), strict=True))
        self.nodes = range(len(parents))

    def path(self, node):
        above = self.parents[node]
        return [*(self.path(above) if above >= 0 else []), node]

    def leaves(self, node):
        return [leaf for leaf in self.returns if node in self.path(leaf)]

    def weights(self, node):
        """Children with a scored leaf and their shares."""
        children = [c for c in self.nodes if self.parents[c] == node and self.leaves(c)]
        weight = {
            child_softmax_values: lambda c: math.exp(self.entropies[c]),
            child_entropy_values: lambda c: self.entropies[c],
            child_mean_values: lambda c: 1.0,
            leaf_mean_values: lambda c: len(self.leaves(c)),
        }[self.value]
        total = sum(map(weight, children))
        return [(c, weight(c) / total) for c in children]

    def to_go(self, node):
        if node in self.returns:
            return self.to_go_at(node, len(self.path(node)) - 1)
        return self.rewards[node] + sum(w * self.to_go(c) for c, w in self.weights(node))

    def to_go_at(self, leaf, depth):
        """Of a leaf's return, what was not paid on the way before a depth."""
        return self.returns[leaf] - sum(self.rewards[n] for n in self.path(leaf)[:-1][:depth])

    def credit(self, node):
        """V(n)."""
        if not self.leaves(node):
            return 0.0
        depth = len(self.path(node)) - 1
        others = self.leaves(self.path(node)[0])
        depths = range(max(len(self.path(leaf)) for leaf in others))
        scale = max(pstdev(self.to_go_at(leaf, d) for leaf in others) for d in depths)
        mean = fmean(self.to_go_at(leaf, depth) for leaf in others)
        return (self.to_go(node) - mean) / (scale + 1e-6)

    def after(self, node):
        """U(n): the value of where its children start; of a leaf, its own."""
        return sum(w * self.credit(c) for c, w in self.weights(node))

    def advantages(self, node):
        parent, root = self.parents[node], self.path(node)[0]
        if parent < 0 or not self.leaves(node):
            return [self.credit(node), 0.0, 0.0, 0.0]
        local, over_prompt = (self.credit(node) - self.after(n) for n in (parent, root))
        return [self.credit(node), local, over_prompt, local + over_prompt]


def credit_of(value, parents, entropies, leaves, returns, rewards):
    """``[4, M]`` by every advantage."""
    normalised, paid = normalised_returns(parents, leaves, returns, rewards)
    values = value(parents, entropies, leaves, normalised)
    return torch.stack([advantage(values, paid, parents, leaves) for advantage in ADVANTAGES])


@pytest.mark.parametrize("value", VALUES)
@given(forest=forests())
def test_credit_follows_its_definition(value, forest):
    definition = Definition(value, *forest)
    expected = torch.tensor([definition.advantages(node) for node in definition.nodes]).double()
    got = credit_of(value, *forest)
    torch.testing.assert_close(got, expected.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", VALUES)
@given(forest=forests())
def test_rewards_at_the_leaves_alone_are_at2po_to_the_bit(value, forest):
    parents, entropies, leaves, returns, _ = forest
    returns = returns.float()
    outcomes = torch.zeros(len(parents)).index_put((leaves,), returns)
    normalised, paid = normalised_returns(parents, leaves, returns, outcomes)
    centred, tree, counts = centred_by_group(returns, depths_and_roots(parents)[1][leaves])
    variances = torch.zeros_like(counts).index_add(0, tree, centred.square()) / counts
    expected = torch.where(centred == 0, 0, centred / (variances.sqrt()[tree] + 1e-6))
    assert torch.equal(normalised, expected) and not paid.any()
    values = value(parents, entropies, leaves, expected)
    assert torch.equal(credit_of(value, parents, entropies, leaves, returns, outcomes)[0], values)


def renumbered(forest, generator):
    """Nodes in another order that keeps parents first, leaves in any; and where each went."""
    parents, entropies, leaves, returns, rewards = forest
    keys = depths_and_roots(parents)[0] + 0.9 * torch.rand(len(parents), generator=generator)
    order = keys.argsort()  # by depth, siblings and cousins at random
    number = order.argsort()
    shuffle = torch.randperm(len(leaves), generator=generator)
    above = torch.where(parents[order] >= 0, number[parents[order]], -1)
    moved = (above, entropies[order], number[leaves][shuffle], returns[shuffle], rewards[order])
    return moved, order


@pytest.mark.parametrize("value", VALUES)
@given(forest=forests(), seed=st.integers(0, 2**31))
def test_swapping_siblings_changes_nothing(value, forest, seed):
    moved, order = renumbered(forest, torch.Generator().manual_seed(seed))
    before, after = credit_of(value, *forest), credit_of(value, *moved)
    torch.testing.assert_close(after, before[:, order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", VALUES)
@given(forest=forests(), depth=st.integers(1, 2), more=st.floats(-3, 3))
def test_what_every_trajectory_is_paid_at_one_depth_is_no_credit(value, forest, depth, more):
    """If all of them go on from there."""
    parents, entropies, leaves, returns, rewards = forest
    depths, _ = depths_and_roots(parents)
    deep = depths[leaves] > depth
    leaves, returns = leaves[deep], returns[deep]
    shifted = torch.where(depths == depth, rewards + more, rewards)
    before = credit_of(value, parents, entropies, leaves, returns, rewards)
    after = credit_of(value, parents, entropies, leaves, returns + more, shifted)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", VALUES)
@given(forest=forests())
def test_no_credit_is_blown_up(value, forest):
    """As in any sample of n numbers, none is more than sqrt(n) deviations from the mean."""
    parents, entropies, leaves, returns, rewards = forest
    most = len(leaves) ** 0.5 + 1e-6
    assert bool((credit_of(value, *forest)[0].abs() <= most).all())
    alike = torch.ones_like(returns)
    assert bool(
        (credit_of(value, parents, entropies, leaves, alike, rewards)[0].abs() <= most).all()
    )


@pytest.mark.parametrize("value", VALUES)
@given(
    rewards=st.integers(1, 5).flatmap(
        lambda turns: st.lists(
            st.lists(st.integers(-4, 4), min_size=turns, max_size=turns), min_size=2, max_size=5
        )
    )
)
def test_chains_have_their_returns_to_go_over_the_mean_at_that_depth(value, rewards):
    paid = torch.tensor(rewards).double()  # chains of one prompt, as many turns each
    num_chains = len(paid)
    numbers = 1 + torch.arange(paid.numel()).view_as(paid)
    above = torch.cat([torch.zeros(num_chains, 1).long(), numbers[:, :-1]], 1)
    parents = torch.cat([torch.tensor([-1]), above.flatten()])
    turn_rewards = torch.cat([torch.zeros(1).double(), paid.flatten()])
    entropies = torch.rand(len(parents), generator=torch.Generator().manual_seed(0))
    normalised, before = normalised_returns(parents, numbers[:, -1], paid.sum(1), turn_rewards)
    values = value(parents, entropies, numbers[:, -1], normalised)
    got = node_value(values, before, parents, numbers[:, -1])[numbers]
    to_go = paid.flip(1).cumsum(1).flip(1)
    scale = to_go.std(0, correction=0).max() + 1e-6
    torch.testing.assert_close(got, (to_go - to_go.mean(0)) / scale, rtol=1e-6, atol=1e-9)


def test_alike_returns_do_not_hide_who_earned_them_late():
    """Two chains, paid 1 in the first turn and in the second: nothing to choose at the first,
    and at the second one has earned 1 more than the other."""
    parents, leaves = torch.tensor([-1, 0, 1, 0, 3]), torch.tensor([2, 4])
    rewards, returns = torch.tensor([0.0, 1, 0, 0, 1]), torch.tensor([1.0, 1.0])
    normalised, paid = normalised_returns(parents, leaves, returns, rewards, eps=0)
    assert normalised.tolist() == [0, 0]
    credit = node_value(torch.zeros(5), paid, parents, leaves)
    assert credit.tolist() == [0, 0, -1, 0, 1]
    none, nothing = normalised_returns(parents, leaves, returns, torch.zeros(5), eps=0)
    assert not none.any() and not nothing.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"turn_rewards": TURN_REWARDS[:5]}, "turn_rewards"),
        ({"returns": RETURNS[:2]}, r"leaves \(3,\), returns \(2,\)"),
        ({"returns": torch.tensor([1.0, torch.nan, 0.0])}, "never scored"),
        ({"leaves": torch.tensor([3, 4, 1])}, "has children"),
        ({"parents": torch.tensor([-1, 3, 0, 1, 1, 0, 5])}, "lower number than its children"),
    ],
)
def test_bad_input_is_one_clear_error(changed, message):
    fine = {
        "parents": PARENTS, "leaves": LEAVES, "returns": RETURNS, "turn_rewards": TURN_REWARDS
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        normalised_returns(**fine | changed)
