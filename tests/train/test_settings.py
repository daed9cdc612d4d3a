"""Settings out of range are refused where they are made, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from spanwise.credit import SpanAdvantage
from spanwise.envs.base import Task
from spanwise.errors import SpanwiseError
from spanwise.learn.critic import ValueHead
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty, Overlong
from spanwise.learn.schedule import Cosine
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import FixedLength, HighEntropy, LowProbability
from spanwise.recipes.chain import grpo_chain, sae_chain
from spanwise.recipes.search import at2po_search
from spanwise.rollout import Chains, TreeSearch
from spanwise.samplers.base import Sampling
from spanwise.train.evaluate import Evaluation
from spanwise.train.task_sampling import draw_tasks
from tests.word_game import WordGame

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (Update, "max_gradient_norm", (-1.0, 0.0, NAN)),
        (Update, "learning_rate", (-1e-6, NAN)),
        (Update, "weight_decay", (-1.0,)),
        (Update, "epochs", (0,)),
        (Update, "prompts_per_minibatch", (0,)),
        (Update, "tokens_per_microbatch", (0,)),
        (Objective, "clip_low", (2.0, -0.1)),
        (Objective, "clip_high", (-0.1,)),
        (Objective, "loss_aggregation", (0,)),
        (Objective, "dual_clip", (0.5, NAN)),
        (Objective, "entropy_bonus", (NAN,)),
        (ValueHead, "learning_rate", (-1.0, NAN)),
        (ValueHead, "trunk_gradient", (-1.0, NAN)),
        (ValueHead, "clip", (0.0,)),
        (ValueHead, "pretraining_steps", (-1,)),
        (KLPenalty, "coefficient", (-1.0, NAN)),
        (Overlong, "penalty_tokens", (-1,)),
        (ImportanceCorrection, "tis_cap", (0.0,)),
        (ImportanceCorrection, "rejection_bound", (0.9,)),
        (SpanAdvantage, "lam", (2.0,)),
        (SpanAdvantage, "gamma", (-0.1,)),
        (SpanAdvantage, "length_alpha", (0.0,)),
        (Cosine, "warmup_steps", (-1,)),
        (Cosine, "floor", (1.5,)),
        (LowProbability, "threshold", (-1.0,)),
        (FixedLength, "length", (0,)),
        (HighEntropy, "quantile", (1.5,)),
        (Chains, "max_turn_tokens", (0,)),
        (TreeSearch, "max_response_tokens", (0,)),
        (Evaluation, "num_tasks", (-1, 0)),
        (at2po_search, "keep_trees_every", (-1,)),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(
    kind: Callable[..., Any], field: str, values: Sequence[float]
) -> None:
    for value in values:
        with pytest.raises(SpanwiseError, match=field) as refused:
            replace(kind(), **{field: value})
        assert "\n" not in str(refused.value)


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    config = at2po_search()
    with pytest.raises(SpanwiseError, match=r"penalty_tokens.*10.*max_response_tokens.*9"):
        replace(config, rollout=Chains(max_response_tokens=9), overlong=Overlong(penalty_tokens=10))
    with pytest.raises(SpanwiseError, match="temperature is 0"):
        replace(config, rollout=Chains(sampling=Sampling(temperature=0)))
    with pytest.raises(SpanwiseError, match="top_k is 1"):
        replace(config, rollout=Chains(sampling=Sampling(top_k=1)))
    with pytest.raises(SpanwiseError, match="no gradient"):
        KLPenalty(coefficient=0.1, estimator="k1")
    with pytest.raises(SpanwiseError, match="'gpu0'"):
        Model(device="gpu0").resolved_device()


def test_credit_by_comparison_needs_two_branches_and_that_of_a_critic_does_not() -> None:
    alone = (Chains(num_chains=1), TreeSearch(num_chains=1, num_rounds=0))
    for config in (at2po_search(), grpo_chain()):
        for rollout in alone:
            with pytest.raises(SpanwiseError, match=r"Advantage compares .* take two or more$"):
                replace(config, rollout=rollout)
        replace(config, rollout=TreeSearch(num_chains=1, num_rounds=1, num_expansions=1))
    replace(sae_chain(), rollout=Chains(num_chains=1))


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

    with pytest.raises(ValueError, match="no test tasks"):
        Evaluation().tasks(Nothing())


def test_two_tasks_of_a_step_with_one_id_are_refused() -> None:
    """The journal would give one of them the turns of the other."""
    pool = [Task(id=name, question="?", answers=("!",)) for name in "aab"]
    with pytest.raises(ValueError, match="2 training tasks have the id 'a'"):
        draw_tasks(pool, 3, 0, 1)
