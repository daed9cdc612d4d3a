from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise.batch import Batch
from spanwise.losses.weights import weight_mean, weight_once, weight_per_leaf, weight_sqrt
from spanwise.tree import Failure, Node, Tree
from tests import trees
from tests.trees import grown, root

ROOT = root(50, 51)


def turn(*path: int, tokens: tuple[int, ...], **rest: Any) -> Node:
    """Each token with a log-prob of its own."""
    return trees.turn(*path, tokens=tokens, logprobs=[-0.1 * t for t in tokens], **rest)


# prompt 50 51 ── (0) 1 2 [90] ── (0,0) 3            reward 1
#              │                └─ (0,1) 4 5 6        reward 0
#              └─ (1) 7                               failed, no reward
TREE = Tree(
    task_id="a",
    nodes=(
        ROOT,
        turn(0, tokens=(1, 2), observation=(90,)),
        turn(0, 0, tokens=(3,), reward=1.0),
        turn(0, 1, tokens=(4, 5, 6)),
        turn(
            1,
            tokens=(7,),
            stop="failure",
            reward=None,
            failure=Failure(kind="tool_error", message=""),
        ),
    ),
)
SECOND = Tree(task_id="b", nodes=(ROOT, turn(0, tokens=(8,), reward=0.5)))


def test_rows_by_hand() -> None:
    batch = Batch.from_trees([TREE, SECOND])
    assert batch.tokens.tolist() == [
        [50, 51, 1, 2, 90, 3, 0, 0],
        [50, 51, 1, 2, 90, 4, 5, 6],
        [50, 51, 8, 0, 0, 0, 0, 0],
    ]
    assert batch.lengths.tolist() == [6, 8, 3]
    assert batch.turns.tolist() == [
        [-1, -1, 0, 0, -1, 1, -1, -1],
        [-1, -1, 0, 0, -1, 1, 1, 1],
        [-1, -1, 0, -1, -1, -1, -1, -1],
    ]
    assert batch.nodes.tolist() == [
        [-1, -1, 1, 1, -1, 2, -1, -1],
        [-1, -1, 1, 1, -1, 3, 3, 3],
        [-1, -1, 6, -1, -1, -1, -1, -1],
    ]
    assert torch.equal(batch.mask, batch.nodes >= 0)
    assert batch.parents.tolist() == [-1, 0, 1, 1, 0, -1, 5]
    assert batch.returns.tolist() == [1.0, 0.0, 0.5]
    assert batch.turn_rewards.tolist() == [0, 0, 1.0, 0, 0, 0, 0.5]
    assert batch.task_ids == ("a", "b")
    assert batch.groups.tolist() == [0, 0, 1]
    assert batch.leaves.tolist() == [2, 3, 6]
    assert batch.num_excluded == 1
    assert batch.num_model_tokens == 3 + 5 + 1
    assert batch.engine_logprobs[1].tolist() == pytest.approx(
        [0, 0, -0.1, -0.2, 0, -0.4, -0.5, -0.6]
    )
    # H of a node: mean of 0.1 and 0.2; 0.3; mean of 0.4, 0.5, 0.6
    assert batch.entropies.tolist() == pytest.approx([0, 0.15, 0.3, 0.5, 0.7, 0, 0.8])


def test_nothing_to_train_on_is_an_error() -> None:
    failed = turn(
        0, tokens=(1,), stop="failure", reward=None, failure=Failure(kind="tool_error", message="")
    )
    with pytest.raises(ValueError, match="none of the 1 branches has a reward"):
        Batch.from_trees([grown(ROOT, failed)])


def test_a_shared_turn_counts_once_in_all_or_once_for_each_leaf() -> None:
    nodes = Batch.from_trees([TREE, SECOND]).nodes
    model = (nodes >= 0).float()
    assert torch.equal(weight_per_leaf(nodes), model)
    assert weight_sqrt(nodes)[0].tolist() == pytest.approx([0, 0, 0.5**0.5, 0.5**0.5, 0, 1, 0, 0])
    assert weight_mean(nodes)[0].tolist() == [0, 0, 0.5, 0.5, 0, 1, 0, 0]
    assert weight_once(nodes)[1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    for weights in (weight_mean(nodes), weight_once(nodes)):
        assert torch.equal(weights * model, weights)
        totals = torch.zeros(7).index_add(0, nodes[nodes >= 0], weights[nodes >= 0])
        # two tokens in node 1, one in 2, three in 3, one in 6; 0 and 5 are roots, 4 failed
        assert totals.tolist() == [0, 2, 1, 3, 0, 0, 1]


def test_rows_without_model_tokens_have_no_weight() -> None:
    nodes = torch.tensor([[-1, -1]])
    for weight in (weight_per_leaf, weight_sqrt, weight_mean, weight_once):
        assert weight(nodes).tolist() == [[0.0, 0.0]]


# prompt 50 51 ── (0) 1 2 [90]   paid 0.25 ─┬─ (0,0) 3 [90]   paid nothing ── (0,0,0) 4   paid 0.5
#              │                           └─ (0,1) 5 6       paid -1
#              └─ (1) 7 [90]     paid 2 ────── (1,0) 8        failed: the 2 are not trained on
ON_THE_WAY = Tree(
    task_id="paid",
    nodes=(
        replace(ROOT, observation_text="start"),
        turn(0, tokens=(1, 2), observation=(90,), reward=0.25, text="a", observation_text="one"),
        turn(0, 0, tokens=(3,), observation=(90,), text="b", outcome={"door": 1}),
        turn(0, 0, 0, tokens=(4,), reward=0.5, text="c"),
        turn(0, 1, tokens=(5, 6), reward=-1.0),
        turn(1, tokens=(7,), observation=(90,), reward=2.0),
        turn(
            1, 0, tokens=(8,), stop="failure", reward=None,
            failure=Failure(kind="tool_error", message=""),
        ),
    ),
)  # fmt: skip


def test_rewards_on_the_way_by_hand() -> None:
    batch = Batch.from_trees([ON_THE_WAY])
    assert batch.num_excluded == 1
    assert batch.turn_rewards.tolist() == [0, 0.25, 0, 0.5, -1, 2, 0]
    assert batch.returns.tolist() == [0.75, -0.75]
    assert [ON_THE_WAY.returns(leaf) for leaf in ON_THE_WAY.leaves()] == [0.75, -0.75, None]
    assert batch.tokens.tolist() == [[50, 51, 1, 2, 90, 3, 90, 4], [50, 51, 1, 2, 90, 5, 6, 0]]
    assert batch.rewards_by_token.tolist() == [
        [0, 0, 0, 0.25, 0, 0, 0, 0.5],
        [0, 0, 0, 0.25, 0, 0, -1, 0],
    ]
    extra = torch.zeros(2, 8).index_put((torch.tensor(0), torch.tensor(5)), torch.tensor(-0.125))
    with_tokens = replace(batch, token_rewards=extra)
    assert with_tokens.returns.tolist() == [0.625, -0.75]
    assert with_tokens.rewards_by_token[0].tolist() == [0, 0, 0, 0.25, 0, -0.125, 0, 0.5]


def test_what_estimators_may_know_of_each_node() -> None:
    batch = Batch.from_trees([SECOND, ON_THE_WAY])
    assert batch.texts[2:6] == ("", "a", "b", "c")
    assert batch.observations[2:4] == ("start", "one") and batch.outcomes[4] == {"door": 1}
    answered = [batch.observations[parent] for parent in batch.parents.tolist()]
    assert answered[3:5] == ["start", "one"]
    assert [batch.task_ids[group] for group in batch.groups.tolist()] == ["b", "paid", "paid"]


def test_a_turn_without_model_tokens_pays_the_last_before_it() -> None:
    nodes = (
        ROOT,
        turn(0, tokens=(1, 2), observation=(90,), reward=0.25),
        turn(0, 0, tokens=(), observation=(91,), reward=0.5),
        turn(0, 0, 0, tokens=(), observation=(92,), reward=1.0),
        turn(0, 0, 0, 0, tokens=(3,), observation=(93,)),
        turn(0, 0, 0, 0, 0, tokens=(), reward=2.0),
        turn(1, tokens=(), reward=4.0),
    )
    batch = Batch.from_trees([Tree(task_id="t", nodes=nodes)])
    assert batch.returns.tolist() == [3.75, 4.0]
    assert batch.rewards_by_token[0].tolist() == [0, 0, 0, 1.75, 0, 0, 0, 2, 0]
    assert not batch.rewards_by_token[1].any()  # no model token that earned it


def test_the_order_of_payments_leaves_no_rounding_in_the_return() -> None:
    rewards = (0.1, 0.7, 0.3, -0.2)
    rows = [rewards, rewards[::-1], (0.3, -0.2, 0.1, 0.7)]
    nodes = [ROOT]
    for row, paid in enumerate(rows):
        for depth, reward in enumerate(paid):
            observation = () if depth == 3 else (90,)
            path = (row, *(0,) * depth)
            nodes.append(turn(*path, tokens=(1,), observation=observation, reward=reward))
    tree = grown(*nodes)
    assert len(set(Batch.from_trees([tree]).returns.tolist())) == 1
    assert len({tree.returns(leaf) for leaf in tree.leaves()}) == 1


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(-8, 8), st.booleans()), min_size=1),
        min_size=1,
        max_size=4,
    )
)
def test_token_rewards_add_up_to_the_return(chains: list[list[tuple[int, int, bool]]]) -> None:
    """Of chains that begin with a model token: each turn has some tokens and is paid."""
    nodes = [ROOT]
    for row, turns in enumerate(chains):
        for depth, (count, reward, observed) in enumerate(turns):
            nodes.append(
                turn(
                    row, *(0,) * depth,
                    tokens=(1,) * max(count, depth == 0),
                    observation=(90,) * observed,
                    stop="continue" if depth + 1 < len(turns) else "end",
                    reward=reward / 4,
                )
            )  # fmt: skip
    batch = Batch.from_trees([grown(*nodes)])
    assert torch.equal(batch.rewards_by_token.sum(1), batch.returns)
    assert batch.returns.tolist() == [sum(r for _, r, _ in turns) / 4 for turns in chains]


def test_the_token_limit_cuts_a_branch_and_a_spent_budget_does_not() -> None:
    stops = ("end", "length", "budget", "malformed")
    turns = [trees.turn(i, stop=stop, reward=0.0) for i, stop in enumerate(stops)]
    batch = Batch.from_trees([grown(root(5), *turns)])
    assert batch.truncated.tolist() == [False, True, False, False]
