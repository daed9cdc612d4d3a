"""Turns that go on are paid: the reward is kept, checked, and lost with a branch that fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from spanwise.batch import Batch
from spanwise.envs.base import Reply, Task, Turn
from spanwise.errors import SpanwiseError
from spanwise.rollout import Chains, FailurePolicy, Rollout, RolloutContext, run_async
from spanwise.rollout.tree_search import TreeSearch
from spanwise.samplers.base import Request
from spanwise.testing.faults import FaultPlan, FaultyReward
from spanwise.tree import Tree
from tests.word_game import CharTokenizer, PathSampler, WordGame

TASK = Task(id="task", question="Q:", answers=("win",))


def two_calls(prompt: str, request: Request) -> str:
    return "win;" if "[2]" in prompt else "go;"


def grown(env: Any, rollout: Rollout | None = None, write: Any = two_calls) -> Tree:
    context = RolloutContext(
        env=env,
        sampler=PathSampler(write),
        tokenizer=CharTokenizer(),
        seed=0,
        failures=FailurePolicy(retries=0, max_excluded=1.0),
    )
    return run_async((rollout or Chains(num_chains=1))(context, TASK, step=1))


@pytest.mark.parametrize("wage", [0.5, 1, -2.0, True])
def test_each_turn_keeps_what_it_was_paid(wage: float) -> None:
    tree = grown(WordGame(wage=wage))
    assert [node.reward for node in tree.nodes] == [None, wage, wage, 1.0]
    [leaf] = tree.leaves()
    assert tree.returns(leaf) == 2 * wage + 1
    assert Batch.from_trees([tree]).returns.tolist() == [2 * wage + 1]


def test_a_tree_pays_a_shared_turn_in_each_of_its_branches() -> None:
    tree = grown(WordGame(wage=0.5), TreeSearch(num_chains=1, num_rounds=1, num_expansions=2))
    assert len(tree.leaves()) == 3
    assert {tree.returns(leaf) for leaf in tree.leaves()} == {2.0}
    assert Batch.from_trees([tree]).returns.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("wage", "kind"),
    [(math.nan, "reward_nan"), (math.inf, "reward_nan"), ("1", "reward_error")],
)
def test_a_reward_on_the_way_that_is_no_finite_number_ends_the_branch(wage: Any, kind: str) -> None:
    [leaf] = grown(WordGame(wage=wage)).leaves()
    assert leaf.path == (0,) and leaf.failure is not None and leaf.failure.kind == kind


def test_rewards_on_the_way_do_not_make_a_branch_scored() -> None:
    def write(prompt: str, request: Request) -> str:
        return "nan;" if "[1]" in prompt else "go;"

    tree = grown(WordGame(wage=0.5), write=write)
    [leaf] = tree.leaves()
    assert tree.node((0,)).reward == 0.5 and leaf.failure is not None
    assert tree.returns(leaf) is None
    with pytest.raises(ValueError, match="none of the 1 branches has a reward"):
        Batch.from_trees([tree])


def test_a_cut_turn_that_goes_on_is_paid_and_goes_on() -> None:
    class Patient(WordGame):
        """Takes a turn that the limit of a turn cut for what it is."""

        async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
            if turns[-1].truncated:
                return Reply(stop="continue", reward=0.25, observation="[2]")
            return await super().reply(task, turns)

    tree = grown(Patient(), Chains(num_chains=1, max_turn_tokens=4), lambda prompt, request: (
        "win;" if "[2]" in prompt else "go-far-away;"
    ))  # fmt: skip
    assert [(node.stop, node.reward) for node in tree.nodes[1:]] == [("continue", 0.25), ("end", 1)]


def test_a_turn_without_room_for_another_is_paid_as_the_cut_one() -> None:
    tree = grown(WordGame(wage=0.5), Chains(num_chains=1, max_response_tokens=8))
    assert [node.stop for node in tree.nodes[1:]] == ["continue", "length"]
    assert [node.reward for node in tree.nodes[1:]] == [0.5, -1.0]


@pytest.mark.parametrize(("fault", "kind"), [("nan", "reward_nan"), ("raise", "reward_error")])
def test_planned_faults_strike_rewards_on_the_way(fault: str, kind: str) -> None:
    plan = FaultPlan(rates={fault: 1.0})  # pyright: ignore[reportArgumentType]
    [leaf] = grown(FaultyReward(env=WordGame(wage=0.5), plan=plan)).leaves()
    assert leaf.path == (0,) and leaf.failure is not None and leaf.failure.kind == kind


def test_a_reward_that_is_no_number_is_refused_where_the_reply_is_made() -> None:
    wrong: Any = "0.5"
    with pytest.raises(SpanwiseError, match="must be a number, not str"):
        Reply(stop="continue", observation="go on", reward=wrong)
