"""Run folders written by the library itself, small, with text that means to do harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spanwise.run.folder import RunFolder, tree_record
from spanwise.tree import Expansion, Failure, Node, Tree
from tests import trees

SCRIPT = "<script>document.title='taken'</script>"
IMAGE = "<img src=x onerror=\"document.title='taken'\">"
ANSI = "\x1b[31mred\x1b[2J"
BIDI = "\u202egnp.txet"


def turn(*path: int, words: tuple[str, ...] = ("a", "b"), **fields: Any) -> Node:
    return trees.turn(
        *path,
        tokens=range(10, 10 + len(words)),
        logprobs=[math.log(0.9 if i % 2 else 0.1) for i in range(len(words))],
        text=" ".join(words),
        **fields,
    )


def small_tree(number: int = 0) -> Tree:
    """Two first turns; below the first a right and a wrong leaf and a failure."""
    return Tree(
        task_id=f"task-{number}",
        nodes=(
            Node(path=(), observation=(1, 2), stop="prompt", observation_text=f"question {number}"),
            turn(0, stop="continue", words=("look", SCRIPT, "up"), observation=(3,),
                 observation_text=IMAGE, label=f"search {SCRIPT}", outcome={"query": SCRIPT}),
            turn(0, 0, stop="end", words=(ANSI, BIDI, "yes"), reward=1.0,
                 success=True, label=f"answer {BIDI}"),
            turn(0, 1, stop="end", words=("no", "no"), reward=0.0, success=False,
                 expansion=Expansion(round=2, of=(0, 0), score=0.75)),
            Node(path=(0, 2), stop="failure",
                 failure=Failure(kind="tool_timeout", message=f"hung {ANSI}")),
            turn(1, stop="end", words=("quick", "guess"), reward=0.0, success=False),
        ),
    )  # fmt: skip


def game_tree() -> Tree:
    """A game that pays on the way and knows no success; the returns are 1.5, 0.25 and 0."""
    return Tree(
        task_id="game",
        nodes=(
            Node(path=(), observation=(1,), stop="prompt", observation_text="you stand at 0"),
            turn(0, stop="continue", words=("go", "right"), observation=(2,), reward=0.5,
                 observation_text="you stand at 1", label="right", outcome={"place": 1}),
            turn(0, 0, stop="end", words=("go", "on", "right"), reward=1.0, label="right",
                 outcome={"place": 2}),
            turn(0, 1, stop="continue", words=("go", "left"), observation=(1,), reward=-0.25,
                 observation_text="you stand at 0", outcome={"place": 0, "note": IMAGE}),
            turn(0, 1, 0, stop="budget", words=("stay",), reward=0.0),
            turn(1, stop="end", words=("give", "up"), reward=0.0, label=SCRIPT),
        ),
    )  # fmt: skip


def record(tree: Tree, answers: Sequence[str] = (SCRIPT,), **per_token: Any) -> dict[str, Any]:
    """A line of ``trees/`` with credit that differs from turn to turn."""
    places = range(len(tree.nodes))
    tokens = [
        {
            name: [function(t) for t in range(len(node.tokens))]
            for name, function in per_token.items()
        }
        for node in tree.nodes
    ]
    return tree_record(
        tree,
        {"question": f"{IMAGE} who?", "answers": answers, "info": {"level": 3}},
        advantages=[0.5 * i - 1.0 for i in places],
        values=[0.25 * i for i in places],
        tokens=tokens,
    )


def make_run(
    folder: Path,
    *,
    recipe: str = "at2po_search",
    seed: int = 0,
    steps: int = 20,
    trees_at: tuple[int, ...] = (1, 2, 20),
    finished: bool = True,
    offset: float = 0.0,
    advantage: Mapping[str, Any] = {"class": "TreeAdvantage", "advantage": "node_value"},
    **per_token: Any,
) -> RunFolder:
    config = {
        "class": "TrainConfig",
        "seed": seed,
        "folder": str(folder),
        "advantage": advantage,
        "objective": {"clip_low": 0.003, "clip_high": 0.004},
    }
    log = RunFolder.create(folder, {"recipe": recipe, "arguments": [], "config": config})
    for step in range(1, steps + 1):
        log.write_metrics(metrics(step, offset))
    for step in trees_at:
        log.write_trees(step, [record(small_tree(n), **per_token) for n in range(3)])
    if finished:
        log.write_summary(
            {
                "recipe": recipe,
                "seed": seed,
                "before": measured(0.4, 0.5),
                "after": measured(0.8 + offset, 0.9),
                "train_seconds": 10.0,
                "sampled_tokens": 100 * steps,
                "peak_memory_mb": 100,
            }
        )
    return log


def measured(sampled: float, greedy: float) -> dict[str, Any]:
    scores = {
        "score": sampled,
        "success": sampled,
        "greedy_score": greedy,
        "greedy_success": greedy,
    }
    return {**scores, "n": 10, "failed": 0, "by_group": {}}


def metrics(step: int, offset: float = 0.0) -> dict[str, Any]:
    return {
        "step": step,
        "unforked/score": 0.3 + step / 50 + offset,
        "score": 0.2 + step / 50 + offset,
        "entropy": 1 / step,
        "turn_tokens": 9.0,
        "clip_frac/token_low": 0.01,
        "clip_frac/token_high": 0.02,
        "excluded": 1,
        "branches": 10,
        "sampled_tokens": 100,
        "total_sampled_tokens": 100 * step,
        "seconds/rollout": 0.5,
        "engine_mismatch": 1e-8,
    }


def branching_tree(num_leaves: int) -> Tree:
    """A tree of many leaves: eight first turns, and leaves below them."""
    nodes = [Node(path=(), observation=(1,), stop="prompt", observation_text="q")]
    for first in range(8):
        nodes.append(turn(first, stop="continue", label=f"query {first}"))
        below = num_leaves // 8 + (first < num_leaves % 8)
        for leaf in range(below):
            nodes.append(
                turn(first, leaf, stop="end", reward=float(leaf % 2), label=f"answer {leaf}")
            )  # fmt: skip
    return Tree(task_id="branching", nodes=tuple(sorted(nodes, key=lambda n: n.path)))
