"""The update under each credit and weight of shared turns, against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any, get_args, get_type_hints

import pytest
import torch

from spanwise.advantages import leaf_counts
from spanwise.credit import TreeAdvantage
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.partitions import Token
from spanwise.tree import Node, Path, Tree
from tests.learners import new_learner, scored, trained
from tests.tiny import tiny_model
from tests.trees import random_tree

VALUES = get_args(get_type_hints(TreeAdvantage)["value"])
TREES = [random_tree(seed, branches=6) for seed in range(3)]


def value(kind: str, tree: Tree, node: Node, scale: tuple[float, float]) -> float:
    """V(n), of returns in the deviations of the tree."""
    if node.reward is not None:
        return (node.reward - scale[0]) / scale[1]
    below = [n for n in tree.nodes if n.path[:-1] == node.path and n.path]
    shares = {
        "child_softmax": [math.exp(n.entropy) for n in below],
        "child_entropy": [n.entropy for n in below],
        "child_mean": [1.0 for _ in below],
        "leaf_mean": [
            float(sum(is_leaf_below(leaf, n.path) for leaf in tree.leaves())) for n in below
        ],
    }[kind]
    values = [value(kind, tree, n, scale) for n in below]
    return sum(w * v for w, v in zip(shares, values, strict=True)) / sum(shares)


def is_leaf_below(leaf: Node, path: Path) -> bool:
    return leaf.path[: len(path)] == path


def by_hand(kind: str) -> torch.Tensor:
    """Of the loss on the policy itself: each branch's mean of -A log p, and their mean."""
    model = tiny_model(dtype=torch.float64)
    losses: list[torch.Tensor] = []
    for tree in TREES:
        rewards = [leaf.reward or 0.0 for leaf in tree.leaves()]
        scale = fmean(rewards), pstdev(rewards) + 1e-6
        for branch in tree.branches():
            tokens = [t for n in branch.nodes for t in (*n.tokens, *n.observation)]
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            terms: list[torch.Tensor] = []
            place = 0
            for node in branch.nodes:
                for token in node.tokens:
                    terms.append(-value(kind, tree, node, scale) * logprobs[place - 1, token])
                    place += 1
                place += len(node.observation)
            losses.append(torch.stack(terms).mean())
    torch.stack(losses).mean().backward()
    return gradients(model)


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", VALUES)
def test_the_gradient_of_an_update_is_that_of_a_plain_recursion(kind: Any) -> None:
    model = tiny_model(dtype=torch.float64)
    update = Update(learning_rate=0.0, prompts_per_minibatch=3, max_gradient_norm=math.inf)
    credit = TreeAdvantage(value=kind)
    trained(new_learner(model, Objective(ratio_spans=Token()), update, advantage=credit), TREES)
    torch.testing.assert_close(gradients(model), by_hand(kind), rtol=0, atol=1e-7)


def test_no_two_values_give_the_same_gradient() -> None:
    found = [by_hand(kind) for kind in VALUES]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert (a - b).abs().max() > 1e-3


def test_the_weight_sqrt_is_treerls_division_of_the_advantage() -> None:
    """By the root of the number of leaves below; clipped steps included."""
    update = Update(learning_rate=3e-3, epochs=3, prompts_per_minibatch=3)
    found: list[torch.Tensor] = []
    for weighting in ("sqrt", "per_leaf"):
        model = tiny_model(dtype=torch.float64)
        objective = Objective(ratio_spans=Token(), shared_turns=weighting, clip_high=0.02)
        learner = new_learner(model, objective, update, advantage=TreeAdvantage())
        batch = scored(learner, TREES)
        assert batch.advantages is not None
        counts = leaf_counts(batch.parents, batch.leaves)[batch.nodes.clamp(min=0)]
        assert int(counts.max()) > 2
        if weighting == "per_leaf":
            batch = replace(batch, advantages=batch.advantages / counts.double().sqrt())
        assert learner.update(batch, step=1)["clip_frac/span_high"] > 0
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
