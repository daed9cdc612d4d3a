from __future__ import annotations

from dataclasses import replace

import pytest

from spanwise.tree import Node
from tests.trees import grown, root, turn

ROOT = root(5, 6, 7)


def test_tokens_are_counted_once_or_for_each_branch() -> None:
    tree = grown(
        ROOT,  # 3
        turn(0, stop="continue", tokens=4, observation=(9, 9)),  # 6
        turn(0, 0, tokens=5),
        turn(0, 1, tokens=7),
        turn(1, tokens=2),
    )
    assert tree.unique_tokens == 3 + 6 + 5 + 7 + 2
    assert tree.total_tokens == (3 + 6 + 5) + (3 + 6 + 7) + (3 + 2)
    assert [len(b.tokens) for b in tree.branches()] == [14, 16, 5]
    assert [sum(b.mask) for b in tree.branches()] == [9, 11, 2]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "root"),
        ((turn(0),), "root"),
        ((ROOT, turn(0), turn(0)), "sorted by path"),
        ((ROOT, turn(1), turn(0)), "sorted by path"),
        ((ROOT, turn(0, 0)), "no parent"),
        ((ROOT, turn(0), turn(0, 0)), "follows a leaf"),
    ],
)
def test_what_is_no_tree_is_refused(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grown(*nodes)


def test_log_probs_must_match_the_tokens() -> None:
    with pytest.raises(ValueError, match="must match"):
        Node(
            path=(0,),
            tokens=(1, 2),
            engine_logprobs=(0.0,),
            sampling_logprobs=(0.0, 0.0),
            stop="continue",
        )


def test_the_entropy_is_that_of_what_was_drawn_from() -> None:
    node = turn(0, tokens=2, logprobs=[-1.0, -2.0], sampling_logprobs=(-0.5, -0.5))
    assert node.entropy == 0.5


def test_a_node_was_drawn_as_the_engine_says_unless_it_says_otherwise() -> None:
    node = Node(path=(0,), tokens=(1, 2), engine_logprobs=(-1.0, -2.0), stop="continue")
    assert node.sampling_logprobs == (-1.0, -2.0)
    assert replace(node, sampling_logprobs=(0.0, 0.0)).sampling_logprobs == (0.0, 0.0)
