"""Rows to time packing on: groups and trees of random tokens, of many shapes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from spanwise.batch import Batch
from spanwise.tree import Node, Path, Tree

KINDS = (
    "flat groups",
    "one-token answers",
    "nothing shared",
    "little shared",
    "one long answer",
    "deep trees",
    "wide trees",
)


class RandomTokens:
    """Draws of one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.draw.randrange(2, 300) for _ in range(count))

    def answer(self, path: Path, count: int) -> Node:
        return self._node(path, count, "end", reward=float(self.draw.random() < 0.5))

    def call(self, path: Path, count: int, observation: int) -> Node:
        return self._node(path, count, "continue", observation=self.tokens(observation))

    def _node(
        self,
        path: Path,
        count: int,
        stop: str,
        observation: tuple[int, ...] = (),
        reward: float | None = None,
    ) -> Node:
        logprobs = (-1.0,) * count
        return Node(
            path=path,
            tokens=self.tokens(count),
            observation=observation,
            engine_logprobs=logprobs,
            stop=stop,  # pyright: ignore[reportArgumentType]
            reward=reward,
        )

    def group(self, name: str, prompt: int, answers: Sequence[int]) -> Tree:
        """Answers of the given lengths to one prompt."""
        root = Node(path=(), observation=self.tokens(prompt), stop="prompt")
        nodes = (self.answer((i,), count) for i, count in enumerate(answers))
        return Tree(task_id=name, nodes=(root, *nodes))

    def tree(self, name: str, prompt: int, size: int, *, depth: int, branching: int) -> Tree:
        """Turns of up to ``size`` tokens, up to ``branching`` after each; about 24 leaves."""
        nodes = [Node(path=(), observation=self.tokens(prompt), stop="prompt")]
        leaves = 0

        def grow(path: Path) -> None:
            nonlocal leaves
            for i in range(self.draw.randint(1, branching) if leaves < 24 else 1):
                count = self.draw.randint(max(1, size // 2), size)
                if len(path) + 1 == depth or self.draw.random() < 0.2:
                    leaves += 1
                    nodes.append(self.answer((*path, i), count))
                else:
                    nodes.append(self.call((*path, i), count, self.draw.randint(0, size)))
                    grow((*path, i))

        grow(())
        return Tree(task_id=name, nodes=tuple(nodes))


def flat_groups(num_groups: int, *, prompt: int, answer: int) -> Batch:
    """Eight random answers to each of some random prompts, lengths in tokens."""
    some = RandomTokens(0)

    def lengths() -> list[int]:
        return [some.draw.randint(answer // 2, answer) for _ in range(8)]

    return Batch.from_trees([some.group(str(g), prompt, lengths()) for g in range(num_groups)])


def random_rows(seed: int, *, most_tokens: int) -> tuple[str, Batch]:
    """The kind and the rows of a random input; of too large ones the first few groups."""
    kind, some = KINDS[seed % len(KINDS)], RandomTokens(seed)
    size = some.draw.choice((1, 2, 8, 32, 100, 300))
    prompt = some.draw.choice((2, 8, 30, 100, 300, 800))
    num_rows = some.draw.choice((2, 4, 8, 16))
    evenly = some.draw.random() < 0.5

    def lengths() -> list[int]:
        least = size if evenly else max(1, size // 2)
        return [some.draw.randint(least, size) for _ in range(num_rows)]

    def grown(name: str) -> Tree:
        match kind:
            case "one-token answers":
                return some.group(name, prompt, [1] * num_rows)
            case "nothing shared":
                return some.group(name, prompt, lengths()[:1])
            case "little shared":
                shared = max(1, round(size * some.draw.uniform(0.02, 0.4)))
                return some.group(name, shared, lengths())
            case "one long answer":
                long, *rest = lengths()
                return some.group(name, prompt, [10 * long, *rest])
            case "deep trees":
                depth = some.draw.randint(2, 6)
                return some.tree(name, prompt, max(1, size // 2), depth=depth, branching=2)
            case "wide trees":
                return some.tree(name, prompt, max(1, size // 2), depth=2, branching=12)
            case _:
                return some.group(name, prompt, lengths())

    trees, total = list[Tree](), 0
    for group in range(some.draw.choice((1, 2, 4, 8))):
        tree = grown(str(group))
        total += tree.total_tokens
        if trees and total > most_tokens:
            break
        trees.append(tree)
    return kind, Batch.from_trees(trees)
