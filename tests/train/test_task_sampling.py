from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanwise.envs.base import Task
from spanwise.learn.critic import NoCritic
from spanwise.rollout import Chains, FailurePolicy, RolloutContext, RunStopped
from spanwise.samplers.base import Request
from spanwise.train.config import TrainConfig
from spanwise.train.task_sampling import (
    Sampled,
    has_reward_variance,
    replacement_tasks,
    sample_step,
)
from tests.train.letters import Letters, letters, run
from tests.word_game import CharTokenizer, PathSampler, WordGame

POOL = [Task(id=str(i), question=f"Q{i}:", answers=("win",)) for i in range(8)]


def context(undecided: str) -> RolloutContext:
    """Branches of a task all lose, unless its number is in ``undecided``."""

    def write(prompt: str, request: Request) -> str:
        return "win;" if prompt[1] in undecided and request.seed % 2 else "lose;"

    return RolloutContext(
        env=WordGame(), sampler=PathSampler(write), tokenizer=CharTokenizer(), seed=0
    )


def settings(**changes: Any) -> TrainConfig:
    config = letters(critic=NoCritic(), rollout=Chains(num_chains=16), prompts_per_step=3)
    return replace(config, **changes)


def sample(undecided: str, **changes: Any) -> Sampled:
    return asyncio.run(sample_step(context(undecided), settings(**changes), POOL, 1))


def test_without_refilling_all_prompts_are_trained_on() -> None:
    sampled = sample("")
    assert len(sampled.trees) == len(sampled.tasks) == 3 and sampled.all_trees == sampled.trees


def test_prompts_that_score_alike_are_replaced() -> None:
    sampled = sample("0123", dynamic_sampling_rounds=5)
    assert len(sampled.trees) == 3
    assert {t.id for t in sampled.tasks} <= set("0123")
    assert [t.task_id for t in sampled.trees] == [t.id for t in sampled.tasks]
    assert all(map(has_reward_variance, sampled.trees))
    ids = [t.task_id for t in sampled.all_trees]
    assert len(ids) == len(set(ids))  # no prompt twice
    assert [t.task_id for t in sample("0123", dynamic_sampling_rounds=5).all_trees] == ids


@pytest.mark.parametrize(("wage", "vary"), [(None, False), (0.5, True)])
def test_what_was_paid_on_the_way_makes_branches_differ(wage: float | None, vary: bool) -> None:
    """All win, and half of them after a call."""

    def write(prompt: str, request: Request) -> str:
        return "go;" if prompt == "Q0:" and request.seed % 2 else "win;"

    env, sampler = WordGame(wage=wage), PathSampler(write)
    game = RolloutContext(env=env, sampler=sampler, tokenizer=CharTokenizer(), seed=0)
    tree = asyncio.run(settings().rollout(game, POOL[0], step=1))
    assert {leaf.reward for leaf in tree.leaves()} == {1.0}
    assert len({len(leaf.path) for leaf in tree.leaves()}) == 2
    assert has_reward_variance(tree) == vary


def test_refilling_ends_at_its_limit_and_with_the_pool() -> None:
    once = sample("", dynamic_sampling_rounds=1)
    assert once.trees == [] and len(once.all_trees) == 6
    ever = sample("", dynamic_sampling_rounds=50)
    assert ever.trees == [] and len(ever.all_trees) == 8
    one = sample("5", dynamic_sampling_rounds=50)
    assert [t.id for t in one.tasks] == ["5"]


def test_a_refill_does_not_depend_on_how_many_were_used_before() -> None:
    first = [t.id for t in replacement_tasks(POOL, POOL[:2], 0, 1)]
    assert sorted(first) == list("234567")
    assert first == [t.id for t in replacement_tasks(POOL, POOL[:2], 0, 1)]
    assert first != [t.id for t in replacement_tasks(POOL, POOL[:2], 0, 2)]


TOLERANT = FailurePolicy(max_excluded=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"env": Letters(right_from=""), "critic": NoCritic(), "dynamic_sampling_rounds": 1},
        {"env": Letters(scored=False), "failures": TOLERANT, "critic": NoCritic()},
        {"env": Letters(scored=False), "failures": TOLERANT},
    ],
    ids=["all alike", "no rewards", "no rewards, with a critic"],
)
def test_a_step_with_nothing_to_train_on_is_reported_and_skipped(
    changes: dict[str, object], tmp_path: Path
) -> None:
    log = run(letters(**changes), tmp_path)
    metrics = log.read_metrics()
    assert [m["no_signal"] for m in metrics] == [1.0, 1.0]
    assert [m["trained_tokens"] for m in metrics] == [0, 0]
    assert all(m["sampled_tokens"] > 0 for m in metrics)
    assert log.read_summary()["before"] == log.read_summary()["after"]
    if changes.get("dynamic_sampling_rounds"):
        assert metrics[0]["dropped_prompts"] == metrics[0]["branches"] / 4 == 32
    else:
        assert metrics[0]["excluded"] == metrics[0]["branches"]
        assert metrics[0]["failures/reward_error"] == metrics[0]["branches"]


def test_losing_too_many_branches_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"32 of 32 branches failed.* 32 reward_error .*no judge"):
        run(letters(env=Letters(scored=False), critic=NoCritic()), tmp_path)


def test_dropped_prompts_are_reported_but_not_trained_on(tmp_path: Path) -> None:
    for metrics in run(
        letters(critic=NoCritic(), dynamic_sampling_rounds=1), tmp_path
    ).read_metrics():
        kept = metrics["branches"] / 4 - metrics["dropped_prompts"]
        assert 0 < kept <= 16 and metrics["dropped_prompts"] > 0
        assert 0 < metrics["trained_tokens"] < metrics["sampled_tokens"]
