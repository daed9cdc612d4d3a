"""Settings out of range are refused where they are made, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from spanwise.credit import SpanAdvantage
from spanwise.envs.base import Task
from spanwise.learn.critic import ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty, Overlong
from spanwise.learn.update import Update
from spanwise.models.loading import Model, ModelError
from spanwise.partitions import FixedLength, HighEntropy, LowProbability
from spanwise.recipes.search import at2po_search
from spanwise.rollout import Chains, TreeSearch
from spanwise.samplers.base import Sampling
from spanwise.train.evaluate import Evaluation
from spanwise.train.task_sampling import draw_tasks
from tests.word_game import WordGame


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Update(max_gradient_norm=-1.0), "max_gradient_norm must be above 0"),
        (lambda: Update(max_gradient_norm=0.0), "max_gradient_norm must be above 0"),
        (lambda: Update(max_gradient_norm=float("nan")), "max_gradient_norm"),
        (lambda: Update(learning_rate=-1e-6), "learning_rate"),
        (lambda: Update(epochs=0), r"update\.epochs must be at least 1, got 0"),
        (lambda: Update(prompts_per_minibatch=0), "prompts_per_minibatch"),
        (lambda: Update(tokens_per_microbatch=0), "tokens_per_microbatch"),
        (lambda: Objective(clip_low=2.0), "clip_low"),
        (lambda: Objective(clip_high=-0.1), "clip_high"),
        (lambda: Objective(loss_aggregation=0), "at least 1 token, got 0"),
        (lambda: Objective(dual_clip=0.5), "dual_clip must be above 1"),
        (lambda: Objective(entropy_bonus=float("nan")), "entropy_bonus must be a number"),
        (
            lambda: ValueHead(learning_rate=-1.0),
            r"critic\.learning_rate must be at least 0, got -1",
        ),
        (lambda: ValueHead(learning_rate=float("nan")), "learning_rate"),
        (lambda: ValueHead(trunk_gradient=float("nan")), "trunk_gradient"),
        (lambda: KLPenalty(coefficient=float("nan")), "coefficient >= 0"),
        (
            lambda: replace(
                at2po_search(),
                rollout=Chains(max_response_tokens=9),
                overlong=Overlong(penalty_tokens=10),
            ),
            "penalty_tokens, .* is 10, and rollout.max_response_tokens is 9",
        ),
        (lambda: SpanAdvantage(lam=2.0), r"advantage\.lam must lie in \[0, 1\], got 2"),
        (lambda: SpanAdvantage(gamma=-0.1), "gamma"),
        (lambda: SpanAdvantage(length_alpha=0.0), "length_alpha"),
        (lambda: LowProbability(threshold=-1.0), "threshold is a probability"),
        (lambda: FixedLength(length=0), "at least 1 token"),
        (lambda: HighEntropy(quantile=1.5), "quantile"),
        (lambda: Chains(max_turn_tokens=0), "max_turn_tokens"),
        (lambda: TreeSearch(max_response_tokens=0), "max_response_tokens"),
        (lambda: Evaluation(num_tasks=-1), "num_tasks >= 1"),
        (lambda: Evaluation(num_tasks=0), "num_tasks >= 1"),
        (lambda: replace(at2po_search(), keep_trees_every=-1), "keep_trees_every"),
        (
            lambda: replace(at2po_search(), rollout=Chains(sampling=Sampling(temperature=0))),
            "temperature is 0",
        ),
        (lambda: Model(device="gpu0").resolved_device(), "there is no device 'gpu0'"),
    ],
)
def test_one_clear_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, ModelError), match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_a_step_never_holds_a_task_twice() -> None:
    pool = WordGame().tasks("train")  # 8 tasks, 3 a step: two steps a pass, two tasks left out
    steps = [[task.id for task in draw_tasks(pool, 3, 0, step)] for step in range(-3, 9)]
    assert all(len(set(drawn)) == 3 for drawn in steps)
    passes = [steps[i] + steps[i + 1] for i in range(0, len(steps), 2)]
    assert all(len(set(drawn)) == 6 for drawn in passes)
    assert len({tuple(drawn) for drawn in passes}) == len(passes)  # in orders of their own
    assert steps != [[task.id for task in draw_tasks(pool, 3, 1, step)] for step in range(-3, 9)]


def test_a_pool_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 9 prompts and there are 8 training tasks"):
        draw_tasks(WordGame().tasks("train"), 9, 0, 1)


def test_a_split_without_tasks_is_refused() -> None:
    class Nothing(WordGame):
        def tasks(self, split: str) -> list[Any]:
            return []

    with pytest.raises(ValueError, match="has no test questions"):
        Evaluation().tasks(Nothing())


def test_two_tasks_of_a_step_with_one_id_are_refused() -> None:
    """The journal would give one of them the turns of the other."""
    pool = [Task(id=name, question="?", answers=("!",)) for name in "aab"]
    with pytest.raises(ValueError, match="2 training tasks have the id 'a'"):
        draw_tasks(pool, 3, 0, 1)
