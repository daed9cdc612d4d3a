from __future__ import annotations

from typing import Any

import pytest

from spanwise.batch import Batch
from spanwise.envs.base import Task
from spanwise.rollout import Chains, RolloutContext
from spanwise.samplers.base import Request
from spanwise.train.evaluate import Evaluation, measure
from spanwise.train.metrics import tree_metrics
from spanwise.tree import Expansion, Failure, Node, Tree
from tests.word_game import CharTokenizer, PathSampler, WordGame


def turn(*path: int, tokens: int, logprob: float = -1.0, **rest: Any) -> Node:
    logprobs = (logprob,) * tokens
    return Node(
        path=path,
        tokens=(1,) * tokens,
        engine_logprobs=logprobs,
        sampling_logprobs=logprobs,
        **rest,
    )


TREE = Tree(
    task_id="t",
    nodes=(
        Node(path=(), observation=(5, 6, 7), stop="prompt"),
        turn(0, tokens=2, stop="continue", observation=(9,), logprob=-0.5),
        turn(0, 0, tokens=1, stop="end", reward=1.0, success=True),
        turn(
            0,
            1,
            tokens=3,
            stop="malformed",
            reward=-1.0,
            expansion=Expansion(round=1, of=(0, 0), score=0.1),
        ),
        turn(1, tokens=4, stop="end", reward=0.0, success=False),
        turn(2, tokens=1, stop="failure", failure=Failure(kind="tool_error", message="")),
    ),
)


def test_figures_of_a_hand_made_tree() -> None:
    figures = tree_metrics([TREE], Batch.from_trees([TREE]))
    assert figures["reward"] == pytest.approx(0.0)  # (1 - 1 + 0) / 3 scored branches
    assert figures["exact_match"] == pytest.approx(1 / 3)
    assert figures["unforked/reward"] == pytest.approx(0.5)  # without the expanded branch
    assert figures["unforked/exact_match"] == pytest.approx(0.5)
    assert figures["tool_calls"] == pytest.approx(2 / 3)
    assert figures["turn_entropy"] == pytest.approx((0.5 + 1 + 1 + 1 + 1) / 5)
    assert figures["turn_tokens"] == pytest.approx((2 + 1 + 3 + 4 + 1) / 5)
    assert (figures["branches"], figures["excluded"]) == (4, 1)
    assert figures["stop/end"] == 0.5 and figures["stop/failure"] == 0.25
    assert figures["sampled_tokens"] == 11
    assert figures["trained_tokens"] == 3 + 5 + 4  # the shared turn in both of its branches
    assert figures["row_tokens"] == (3 + 3 + 1) + (3 + 3 + 3) + (3 + 4)  # of scored branches
    assert figures["unique_tokens"] == 3 + 3 + 1 + 3 + 4 + 1
    total = (3 + 3 + 1) + (3 + 3 + 3) + (3 + 4) + (3 + 1)
    assert figures["unique_token_fraction"] == pytest.approx(15 / total)


def test_held_out_scores_count_failures_as_wrong_and_by_group() -> None:
    def write(prompt: str, request: Request) -> str:
        number = int(prompt[1])
        if number == 0:
            return "nan;"  # a reward that cannot be used
        return "win;" if number % 2 or request.sampling.temperature == 0 else "lose;"

    class Grouped(WordGame):
        def tasks(self, split: str) -> list[Task]:
            return [
                Task(id=t.id, question=t.question, answers=t.answers, info={"hops": i % 2})
                for i, t in enumerate(super().tasks(split))
            ]

    context = RolloutContext(
        env=Grouped(), sampler=PathSampler(write), tokenizer=CharTokenizer(), seed=0
    )
    measured = measure(context, Chains(), Evaluation(num_tasks=6)).summary()
    assert measured["n"] == 6 and measured["failed"] == 2
    assert measured["exact_match"] == 3 / 6 and measured["greedy"] == 5 / 6
    assert measured["by_group"]["1"] == {"exact_match": 1.0, "greedy": 1.0, "n": 3}
    assert measured["by_group"]["0"]["greedy"] == pytest.approx(2 / 3)
