from __future__ import annotations

import pytest
import torch

from spanwise.batch import Batch
from spanwise.losses.weights import weight_mean, weight_once, weight_per_leaf
from spanwise.tree import Failure, Node, Tree

ROOT = Node(path=(), observation=(50, 51), stop="prompt")


def turn(*path: int, tokens: tuple[int, ...], observation: tuple[int, ...] = (), **rest) -> Node:
    logprobs = tuple(-0.1 * t for t in tokens)
    return Node(
        path=path,
        tokens=tokens,
        engine_logprobs=logprobs,
        sampling_logprobs=logprobs,
        observation=observation,
        **({"stop": "continue"} if observation else {"stop": "end", "reward": 0.0}) | rest,
    )


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
    assert batch.rewards.tolist() == [1.0, 0.0, 0.5]
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
        Batch.from_trees([Tree(task_id="t", nodes=(ROOT, failed))])


def test_a_shared_turn_counts_once_in_all_or_once_for_each_leaf() -> None:
    nodes = Batch.from_trees([TREE, SECOND]).nodes
    model = (nodes >= 0).float()
    assert torch.equal(weight_per_leaf(nodes), model)
    assert weight_mean(nodes)[0].tolist() == [0, 0, 0.5, 0.5, 0, 1, 0, 0]
    assert weight_once(nodes)[1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    for weights in (weight_mean(nodes), weight_once(nodes)):
        assert torch.equal(weights * model, weights)
        totals = torch.zeros(7).index_add(0, nodes[nodes >= 0], weights[nodes >= 0])
        # two tokens in node 1, one in 2, three in 3, one in 6; 0 and 5 are roots, 4 failed
        assert totals.tolist() == [0, 2, 1, 3, 0, 0, 1]


def test_rows_without_model_tokens_have_no_weight() -> None:
    nodes = torch.tensor([[-1, -1]])
    for weight in (weight_per_leaf, weight_mean, weight_once):
        assert weight(nodes).tolist() == [[0.0, 0.0]]
