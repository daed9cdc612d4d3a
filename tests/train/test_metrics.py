from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from spanwise.batch import Batch
from spanwise.envs.base import Reply, Task, Turn
from spanwise.rollout import Chains, RolloutContext
from spanwise.samplers.base import Request
from spanwise.train.evaluate import Evaluation, measure
from spanwise.train.metrics import own_metrics, tree_metrics
from spanwise.tree import Expansion, Failure
from tests.trees import grown, root, turn
from tests.word_game import CharTokenizer, PathSampler, WordGame

TREE = grown(
    root(5, 6, 7),
    turn(0, tokens=2, stop="continue", observation=(9,), logprobs=-0.5, outcome={"seen": 2}),
    turn(0, 0, tokens=1, stop="end", reward=1.0, success=True, outcome={"late": True}),
    turn(
        0,
        1,
        tokens=3,
        stop="malformed",
        reward=-1.0,
        expansion=Expansion(round=1, of=(0, 0), score=0.1),
    ),
    turn(
        1,
        tokens=4,
        stop="end",
        reward=0.0,
        success=False,
        outcome={"late": False, "seen": 4, "words": "7"},
    ),
    turn(2, tokens=1, stop="failure", failure=Failure(kind="tool_error", message="")),
)


def test_figures_of_a_hand_made_tree() -> None:
    figures = tree_metrics([TREE], Batch.from_trees([TREE]))
    assert figures["score"] == pytest.approx(0.0)  # (1 - 1 + 0) / 3 scored branches
    assert figures["success"] == pytest.approx(1 / 2)  # of the two of which it is said
    assert figures["unforked/score"] == pytest.approx(0.5)  # without the expanded branch
    assert figures["unforked/success"] == pytest.approx(0.5)
    assert figures["turns"] == pytest.approx((2 + 2 + 1) / 3)
    assert figures["env/seen"] == pytest.approx((2 + 4) / 2)  # the shared turn counts once
    assert figures["env/late"] == 0.5 and "env/words" not in figures
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


def test_what_nothing_is_known_of_is_left_out() -> None:
    failed = turn(0, tokens=1, stop="failure", failure=Failure(kind="tool_error", message=""))
    figures = tree_metrics([grown(TREE.root, failed)], None)
    assert not {"score", "success", "unforked/score", "unforked/success"} & figures.keys()


def test_a_score_is_all_that_was_paid_on_the_way() -> None:
    move = turn(0, tokens=1, stop="continue", observation=(9,), reward=0.5)
    ends = [
        turn(0, 0, tokens=1, stop="end", reward=2.0),
        turn(0, 1, tokens=1, stop="end", reward=0),
    ]
    figures = tree_metrics([grown(TREE.root, move, *ends)], None)
    assert figures["score"] == figures["unforked/score"] == 1.5 and "success" not in figures


def test_own_metrics_are_numbers_under_a_name_of_their_own() -> None:
    def leaves(trees: Any, batch: Any) -> dict[str, Any]:
        return {"leaves": torch.tensor(sum(len(tree.leaves()) for tree in trees))}

    def rows(trees: Any, batch: Any) -> dict[str, Any]:
        return {} if batch is None else {"rows": batch.num_rows}

    assert own_metrics([leaves, rows], [TREE], None) == {"own/leaves": 4.0}
    batch = Batch.from_trees([TREE])
    assert own_metrics([leaves, rows], [TREE], batch) == {"own/leaves": 4.0, "own/rows": 3.0}


class Grouped(WordGame):
    """Every other task is of another parity."""

    def tasks(self, split: str) -> list[Task]:
        tasks = super().tasks(split)
        return [replace(task, info={"parity": i % 2}) for i, task in enumerate(tasks)]


def measured(env: WordGame, write: Callable[[str, Request], str], **options: Any) -> dict[str, Any]:
    context = RolloutContext(env=env, sampler=PathSampler(write), tokenizer=CharTokenizer(), seed=0)
    return measure(context, Chains(), Evaluation(**options))


def test_held_out_scores_count_failures_as_no_success_and_by_group() -> None:
    def write(prompt: str, request: Request) -> str:
        number = int(prompt[1])
        if number == 0:
            return "nan;"  # a reward that cannot be used
        return "win;" if number % 2 or request.sampling.temperature == 0 else "lose;"

    found = measured(Grouped(), write, num_tasks=6, group_by="parity")
    assert (found["n"], found["failed"]) == (6, 2)
    assert (found["success"], found["greedy_success"]) == (3 / 6, 5 / 6)
    assert (found["score"], found["greedy_score"]) == (3 / 5, 5 / 5)  # of those that were scored
    even, odd = found["by_group"]["0"], found["by_group"]["1"]
    assert odd == {"n": 3} | dict.fromkeys(
        ("score", "success", "greedy_score", "greedy_success"), 1.0
    )
    assert even["greedy_success"] == pytest.approx(2 / 3) and even["success"] == even["score"] == 0
    assert "by_group" not in even and measured(Grouped(), write, num_tasks=6)["by_group"] == {}


def test_a_group_of_failures_has_no_score_and_no_success() -> None:
    found = measured(
        Grouped(),
        lambda prompt, request: "win;" if int(prompt[1]) % 2 else "nan;",
        num_tasks=4,
        group_by="parity",
    )
    assert found["by_group"]["0"] == {"n": 2, "success": 0.0, "greedy_success": 0.0}


def test_an_environment_without_success_has_a_score_alone() -> None:
    class Dice(WordGame):
        async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
            if turns[-1].text == "nan;":
                raise RuntimeError
            return Reply(stop="end", reward=-3.0, outcome={"pips": 5})

    found = measured(
        Dice(), lambda prompt, request: "nan;" if "0" in prompt else "go;", num_tasks=3
    )
    assert found == {
        "n": 3, "failed": 2, "by_group": {},
        "score": -3.0, "env/pips": 5.0, "greedy_score": -3.0, "greedy_env/pips": 5.0,
    }  # fmt: skip
