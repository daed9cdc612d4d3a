"""Turns, nodes and trees made by hand or at random, for any test."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spanwise.tree import Expansion, Failure, Node, Path, Stop, Tree


def root(*prompt: int, **rest: Any) -> Node:
    """A question of these tokens."""
    return Node(path=(), observation=prompt, stop="prompt", **rest)


def turn(
    *path: int,
    tokens: int | Sequence[int] = 1,
    logprobs: float | Sequence[float] = -1.0,
    observation: Sequence[int] = (),
    stop: Stop | None = None,
    **rest: Any,
) -> Node:
    """A turn of these tokens, or of so many; with no observation after it, a leaf paid 0."""
    sampled = (1,) * tokens if isinstance(tokens, int) else tuple(tokens)
    stop = stop or ("continue" if observation else "end")
    return Node(
        path=path,
        tokens=sampled,
        engine_logprobs=(
            (logprobs,) * len(sampled) if isinstance(logprobs, float) else tuple(logprobs)
        ),
        observation=tuple(observation),
        stop=stop,
        **({"reward": 0.0} if stop == "end" else {}) | rest,
    )


def grown(*nodes: Node, name: str = "t") -> Tree:
    return Tree(task_id=name, nodes=nodes)


def of_rewards(*rewards: float, name: str = "t") -> Tree:
    """Trajectories of one token each."""
    return grown(root(5), *(turn(i, reward=r) for i, r in enumerate(rewards)), name=name)


def of_probabilities(*rows: tuple[Sequence[float], float, Stop], name: str = "t") -> Tree:
    """Single turns after a prompt of two tokens: probabilities, reward, stop."""
    turns = [
        turn(
            i,
            tokens=range(1, len(probabilities) + 1),
            logprobs=[math.log(p) for p in probabilities],
            stop=stop,
            reward=reward,
        )
        for i, (probabilities, reward, stop) in enumerate(rows)
    ]
    return grown(root(50, 51), *turns, name=name)


def random_tree(seed: int, *, branches: int = 4) -> Tree:
    """One to three turns a branch, forking at random turns; tokens below 64."""
    draw = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(64) for _ in range(draw.randint(low, high)))

    nodes: dict[Path, Node] = {(): root(*some(2, 9))}
    for _ in range(branches):
        start = draw.choice([p for p, n in nodes.items() if not n.is_leaf])
        path = (*start, sum(p[:-1] == start for p in nodes if p))
        while True:
            tokens = some(1, 6)
            logprobs = [-draw.random() for _ in tokens]
            ends = len(path) > 2 or draw.random() < 0.4
            given: dict[str, Any] = (
                {"stop": "end", "reward": float(draw.random() < 0.5)}
                if ends
                else {"observation": some(1, 5)}
            )
            nodes[path] = turn(*path, tokens=tokens, logprobs=logprobs, **given)
            if ends:
                break
            path = (*path, 0)
    return grown(*(nodes[p] for p in sorted(nodes)), name=str(seed))


def truncated(of: Tree, *, every: int = 1) -> Tree:
    """The tree with its leaves cut by the token limit, or those whose number divides so."""
    return replace(
        of,
        nodes=tuple(
            replace(n, stop="length") if n.is_leaf and i % every == every - 1 else n
            for i, n in enumerate(of.nodes)
        ),
    )


RANDOM_TREES = [random_tree(seed) for seed in range(6)]

RECORDED = grown(
    root(5, 6),
    turn(
        0,
        tokens=(1, 2),
        logprobs=(-0.1, -0.25),
        sampling_logprobs=(-0.1, -0.5),
        observation=(9,),
        text="call \u202e",
        label="search q",
        outcome={"query": "q", "documents": ["a", "b"]},
    ),
    Node(path=(0, 0), stop="failure", failure=Failure(kind="engine_error", message="m")),
    turn(
        0,
        1,
        tokens=(3,),
        logprobs=-1.5,
        reward=1.0,
        success=True,
        expansion=Expansion(round=1, of=(0, 0), score=0.25),
    ),
)
"""A call, a failure and a right answer, with every kind of field that is recorded."""
