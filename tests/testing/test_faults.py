"""Planned faults arrive as the failures they are, are counted, and are the same every time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.rollout import Chains, FailurePolicy, RolloutContext, run_async
from spanwise.rollout.failures import failures_in
from spanwise.samplers.base import Request, Sampler
from spanwise.testing import (
    FaultPlan,
    FaultyReward,
    FaultySampler,
    FaultyTool,
    check_environment,
)
from spanwise.tools.base import Tool
from spanwise.train.metrics import tree_metrics
from spanwise.tree import Node, Tree
from tests.word_game import CharTokenizer, PathSampler, WordGame

NONE = FaultPlan(rates={})


@dataclass(frozen=True, kw_only=True)
class Echo(Tool):
    deadline_s: float = 5.0

    def call(self, query: str) -> str:
        return f"[{query}]"


@dataclass(frozen=True, kw_only=True)
class ToolGame(WordGame):
    """A ``WordGame`` whose ``go`` asks a tool; other calls are answered as late as can be."""

    tool: Tool = Echo()
    late: random.Random | None = None

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        if self.late is not None:
            await asyncio.sleep(self.late.random() / 100)
        if turns[-1].text == "go;" and not turns[-1].truncated:
            found = await self.tool(f"{task.id}-{len(turns)}")
            return Reply(stop="continue", observation=found)
        return await super().reply(task, turns)


def three_turns(prompt: str, request: Request) -> str:
    return "go;" if prompt.count("go;") < 2 else "win;"


def short(plan: FaultPlan) -> float:
    """A deadline that only what hangs is meant to miss."""
    return 0.5 if "hang" in plan.rates else 60.0


def forest(
    tool: FaultPlan = NONE,
    reward: FaultPlan = NONE,
    engine: FaultPlan = NONE,
    *,
    late: int | None = None,
    num_chains: int = 1,
    **policy: Any,
) -> list[Tree]:
    """Eight trees of step 1."""
    faulty = FaultyTool(tool=Echo(deadline_s=short(tool)), plan=tool, hang_s=1.0)
    game = ToolGame(tool=faulty, late=None if late is None else random.Random(late))
    context = RolloutContext(
        env=FaultyReward(env=game, plan=reward),
        sampler=FaultySampler(PathSampler(three_turns), engine),
        tokenizer=CharTokenizer(),
        seed=0,
        failures=FailurePolicy(
            backoff_s=0.0,
            reply_deadline_s=short(reward),
            engine_deadline_s=short(engine),
            **policy,
        ),
    )
    chains = Chains(num_chains=num_chains, max_response_tokens=400)

    async def grown() -> list[Tree]:
        tasks = game.tasks("train")
        return await asyncio.gather(*(chains(context, task, step=1) for task in tasks))

    return run_async(grown())


def story(node: Node) -> list[tuple[str, str]]:
    ended = () if node.failure is None else (node.failure,)
    return [(f.kind, f.then) for f in (*node.faults, *ended)]


@pytest.mark.parametrize(
    ("fault", "kind", "then"),
    [
        ("raise", "tool_error", "shown"),
        ("crash", "tool_crash", "shown"),
        ("hang", "tool_timeout", "shown"),
        ("bytes", "tool_error", "shown"),
        ("control", "tool_error", "shown"),
        ("huge", "overlong_output", "cut"),
    ],
)
def test_faults_of_a_tool(fault: Any, kind: str, then: str) -> None:
    plan = FaultPlan(rates={fault: 1.0})
    trees = forest(tool=plan, retries=0)
    for tree in trees:
        assert story(tree.node((0,))) == [(kind, then)]
    # Ten megabytes are a long text and no error: they fill the trajectory, which ends there.
    calls = 8 if fault == "huge" else 16
    assert plan.struck == {fault: calls}
    assert tree_metrics(trees, None)[f"failures/{kind}"] == calls
    assert {tree.leaves()[0].reward for tree in trees} == {-1.0 if fault == "huge" else 1.0}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("raise", "reward_error"), ("nan", "reward_nan"), ("hang", "reward_timeout")],
)
def test_faults_of_a_reward_leave_the_branch_out(fault: Any, kind: str) -> None:
    plan = FaultPlan(rates={fault: 1.0})
    leaves = [leaf for tree in forest(reward=plan) for leaf in tree.leaves()]
    assert [story(leaf) for leaf in leaves] == [[(kind, "excluded")]] * 8
    assert {leaf.reward for leaf in leaves} == {None} and plan.struck == {fault: 8}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("raise", "engine_error"), ("nan", "engine_error"), ("hang", "engine_timeout")],
)
def test_faults_of_an_engine_leave_the_branch_out(fault: Any, kind: str) -> None:
    plan = FaultPlan(rates={fault: 1.0})
    trees = forest(engine=plan, retries=0)
    assert [story(tree.node((0,))) for tree in trees] == [[(kind, "excluded")]] * 8
    assert plan.struck == {fault: 8}


def test_an_engine_that_dies_for_a_step_and_comes_back_changes_nothing() -> None:
    plan = FaultPlan(rates={"raise": 1.0}, steps=(1, 1), attempts=2)
    trees = forest(engine=plan)
    assert plan.struck == {"raise": 2 * 8 * 3}  # twice for each of three turns
    assert tree_metrics(trees, None)["retries"] == 48
    clean = forest()
    assert [bare(tree) for tree in trees] == [bare(tree) for tree in clean]
    spared = FaultPlan(rates={"raise": 1.0}, steps=(2, 9))
    assert forest(engine=spared) == clean and not spared.struck


def bare(tree: Tree) -> list[Node]:
    return [replace(node, faults=()) for node in tree.nodes]


MIXED = {"raise": 0.15, "crash": 0.05, "bytes": 0.05, "control": 0.05}


def test_the_same_faults_whatever_is_answered_first() -> None:
    def struck(seed: int, late: int) -> tuple[list[Tree], list[Counter[Any]]]:
        plans = [
            FaultPlan(rates=MIXED, seed=seed),
            FaultPlan(rates={"raise": 0.1, "nan": 0.1}, seed=seed),
            FaultPlan(rates={"raise": 0.1, "nan": 0.05}, seed=seed),
        ]
        return forest(*plans, late=late, num_chains=8), [plan.struck for plan in plans]

    (trees, counts), again = struck(0, 1), struck(0, 2)
    assert (trees, counts) == again
    assert struck(1, 1)[1] != counts
    tool, reward, engine = counts
    kinds = Counter(failure.kind for failure in failures_in(trees))
    assert kinds == {
        "tool_error": tool["raise"] + tool["bytes"] + tool["control"],
        "tool_crash": tool["crash"],
        "reward_error": reward["raise"],
        "reward_nan": reward["nan"],
        "engine_error": engine.total(),
    }
    assert tree_metrics(trees, None)["failures"] == sum(c.total() for c in counts)
    assert min(tool["raise"], tool["crash"], reward["nan"], engine["nan"]) > 0


def test_as_many_calls_fail_as_the_rates_say() -> None:
    plan = FaultPlan(rates={"raise": 0.2, "hang": 0.05}, seed=3)
    for n in range(4000):
        plan.fault(n)
    # Standard deviations are 25 and 14; five of them are missed once in a million times.
    assert abs(plan.struck["raise"] - 800) < 125 and abs(plan.struck["hang"] - 200) < 70


def test_without_faults_all_is_as_it_is_inside() -> None:
    env = WordGame()
    check_environment(FaultyReward(env=env, plan=NONE), splits=("train",), texts=("go;", "win;"))
    assert FaultyReward(env=env, plan=NONE).stop_strings == (";",)
    assert asyncio.run(FaultyTool(tool=Echo(), plan=NONE)("q")) == "[q]"
    assert FaultyTool(tool=Echo(), plan=NONE).deadline_s == 5.0


@pytest.mark.parametrize(
    ("wrapper", "inside"), [(FaultyReward, Environment), (FaultySampler, Sampler)]
)
def test_all_that_can_be_asked_is_asked_of_what_is_inside(wrapper: type, inside: type) -> None:
    public = {name for name in vars(inside) if not name.startswith("_")}
    assert public and public <= vars(wrapper).keys()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaultPlan(rates={"raise": -0.1}), "at least 0"),
        (lambda: FaultPlan(rates={"raise": 0.7, "nan": 0.4}), "at most 1"),
        (lambda: FaultyTool(tool=Echo(), plan=FaultPlan(rates={"nan": 0.1})), "no fault 'nan'"),
        (
            lambda: FaultyReward(env=WordGame(), plan=FaultPlan(rates={"huge": 0.1})),
            "no fault 'huge'; it has raise, hang, nan",
        ),
        (
            lambda: FaultySampler(PathSampler(three_turns), FaultPlan(rates={"bytes": 0.1})),
            "no fault 'bytes'",
        ),
    ],
)
def test_refused_plans(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
