"""Whole runs of a game that pays every turn: what each kind of credit makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from spanwise.credit import Advantage, GroupAdvantage, SpanAdvantage, TreeAdvantage
from spanwise.envs.base import Reply, Task, Turn
from spanwise.learn.critic import NoCritic, ValueHead
from spanwise.partitions import Token
from spanwise.rollout import Chains, TreeSearch
from spanwise.run.folder import RunFolder, tree_of
from spanwise.testing import check_environment
from spanwise.tree import Tree
from tests.train.letters import Letters, letters, run

NUM_TURNS = 3


@dataclass(frozen=True, kw_only=True)
class Ladder(Letters):
    """Three turns; one that begins with a letter of the first half is paid 0.5 at once."""

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        reward = 0.5 * (turns[-1].text[:1] in tuple(self.right_from))
        if len(turns) < NUM_TURNS:
            return Reply(stop="continue", reward=reward, observation=":")
        return Reply(stop="length" if turns[-1].truncated else "end", reward=reward)


def climb(folder: Path, advantage: Advantage, *, forks: int = 0, **changes: Any) -> RunFolder:
    critic = ValueHead(learning_rate=1e-2, pretraining_steps=0)
    chains: dict[str, Any] = {"max_turn_tokens": 4, "max_response_tokens": 32}
    if forks:
        rollout = TreeSearch(num_chains=2, num_rounds=1, num_expansions=forks, **chains)
    else:
        rollout = Chains(num_chains=4, **chains)
    config = letters(
        critic=critic if advantage.needs_values else NoCritic(),
        advantage=advantage,
        env=Ladder(),
        rollout=rollout,
        **changes,
    )
    return run(config, folder)


def returns(trees: Sequence[Tree]) -> list[float]:
    found = [tree.returns(leaf) for tree in trees for leaf in tree.leaves()]
    assert None not in found
    return found  # pyright: ignore[reportReturnType]


def test_the_game_is_one_that_search_may_fork() -> None:
    check_environment(Ladder(), texts=("i", "p;"), solve=lambda task, turns: "a", num_tasks=1)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_critic_is_credited_with_what_comes_after_each_token(tmp_path: Path, lam: float) -> None:
    log = climb(tmp_path, SpanAdvantage(spans=Token(), lam=lam, whiten=False), steps=1)
    for record in log.read_trees(1):
        nodes = {tuple(node["path"]): node for node in record["nodes"]}
        for leaf in tree_of(record).leaves():
            path = [nodes[leaf.path[:depth]] for depth in range(1, NUM_TURNS + 1)]
            values = [v for node in path for v in node["values"]] + [0.0]
            paid = [
                node["reward"] * (place + 1 == len(node["values"]))
                for node in path
                for place in range(len(node["values"]))
            ]
            advantages = [a for node in path for a in node["advantages"]]
            for t, advantage in enumerate(advantages):
                next_value = values[t + 1] if lam == 0 else sum(paid[t + 1 :])
                expected = paid[t] + next_value - values[t]
                assert advantage == pytest.approx(expected, abs=1e-5)


def test_a_tree_has_nothing_to_gain_in_the_mean_at_any_depth(tmp_path: Path) -> None:
    """Every leaf stands for its branch: the mean return to go at a depth is the baseline."""
    log = climb(tmp_path, TreeAdvantage(value="leaf_mean"), forks=4, steps=1)
    spread = 0
    for record in log.read_trees(1):
        nodes = {tuple(node["path"]): node for node in record["nodes"]}
        leaves = tree_of(record).leaves()
        for depth in range(NUM_TURNS + 1):
            of_leaves = [nodes[leaf.path[:depth]]["value"] for leaf in leaves]
            assert fmean(of_leaves) == pytest.approx(0, abs=1e-5)
            spread += max(of_leaves) > min(of_leaves)
        last = {leaf.path: nodes[leaf.path]["value"] for leaf in leaves}
        # paid 0.5 or nothing for the last turn: its credit tells these apart, and nothing else
        won = {round(v, 4) for p, v in last.items() if nodes[p]["reward"]}
        lost = {round(v, 4) for p, v in last.items() if not nodes[p]["reward"]}
        assert len(won) <= 1 and len(lost) <= 1
        assert not won or not lost or min(won) > max(lost)
    assert spread > 20


@pytest.mark.parametrize(
    ("advantage", "forks"),
    [(GroupAdvantage(), 0), (TreeAdvantage(), 4), (SpanAdvantage(), 0)],
    ids=["trajectory", "tree", "critic"],
)
def test_rewards_on_the_way_are_learned_from(
    advantage: Advantage, forks: int, tmp_path: Path
) -> None:
    log = climb(tmp_path, advantage, forks=forks, steps=6)
    first, last = (fmean(returns([tree_of(r) for r in log.read_trees(n)])) for n in (1, 6))
    scores = {m["step"]: m["score"] for m in log.read_metrics()}
    assert (scores[1], scores[6]) == pytest.approx((first, last))
    assert first < 0.8 and last > first + 0.3  # of 1.5 that can be earned
