"""A user's own file: an estimator (GiGPO), a game with rewards on the way, a recipe of both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spanwise.advantages import gather_nodes, group_advantages, leaf_counts, to_tokens
from spanwise.batch import Batch
from spanwise.credit import Advantage
from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.learn.critic import NoCritic
from spanwise.recipes.chain import grpo_chain
from spanwise.rollout import Chains
from spanwise.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class GiGPO(Advantage):
    """Trajectories are compared with those of their prompt, turns with those from the same state.

    Group-in-group policy optimization (arXiv 2505.10978): the advantage of a turn is that of
    its trajectory plus that of its discounted return to go among all turns of the prompt's
    trajectories that answered the same observation, its anchor state.
    """

    step_weight: float = 1.0
    """Weight of the comparison of turns."""

    gamma: float = 0.95
    """Discount for each turn."""

    def __call__(self, batch: Batch) -> Tensor:
        trajectories = group_advantages(batch.returns, batch.groups)
        turns = group_advantages(self.returns_to_go(batch), self.anchors(batch))
        return to_tokens(trajectories, batch.mask) + self.step_weight * gather_nodes(
            turns, batch.nodes
        )

    def returns_to_go(self, batch: Batch) -> Tensor:
        """``[M]`` what each turn was paid and, discounted, what came of it (the mean of forks)."""
        leaves = leaf_counts(batch.parents, batch.leaves).tolist()
        found = batch.turn_rewards.tolist()
        for node, parent in reversed(list(enumerate(batch.parents.tolist()))):
            if parent >= 0 and leaves[node]:
                found[parent] += self.gamma * found[node] * leaves[node] / leaves[parent]
        return torch.tensor(found)

    def anchors(self, batch: Batch) -> Tensor:
        """``[M]`` one number for all turns of a prompt that answered the same observation.

        Roots, and turns of trajectories that failed, are compared with nothing.
        """
        leaves = leaf_counts(batch.parents, batch.leaves).tolist()
        roots: list[int] = []
        numbers: dict[Any, int] = {}
        found: list[int] = []
        for node, parent in enumerate(batch.parents.tolist()):
            roots.append(roots[parent] if parent >= 0 else node)
            turn = parent >= 0 and leaves[node] > 0
            state = (roots[node], batch.observations[parent]) if turn else node
            found.append(numbers.setdefault(state, len(numbers)))
        return torch.tensor(found)


TOP = 4


@dataclass(frozen=True, kw_only=True)
class Corridor(Environment):
    """Rooms 0 to 4 in a row: a turn whose last word is an even number goes up, any other down.

    Each step up is paid 0.25 at once, each down costs as much; the last room is paid 1 and ends
    the game. A reply is worked out from the turns alone, so that a search may fork anywhere.
    """

    num_turns: int = 4
    """Turns after which the game ends anyway."""

    def tasks(self, split: str) -> list[Task]:
        starts = [1, 2] * {"train": 8, "dev": 2, "test": 2}[split]
        return [
            Task(id=f"{split}-{i}", question=str(start), answers=())
            for i, start in enumerate(starts)
        ]

    def messages(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        room = before = int(task.question)
        for turn in turns:
            before, last = room, turn.text.split()[-1:]
            up = last in (["0"], ["2"], ["4"], ["6"], ["8"])
            room = max(room + (1 if up else -1), 0)
        outcome = {"room": room}
        if room == TOP:
            return Reply(stop="end", reward=1.0, success=True, outcome=outcome)
        reward = 0.25 * (room - before)
        if len(turns) == self.num_turns:
            return Reply(stop="end", reward=reward, success=False, outcome=outcome)
        return Reply(stop="continue", reward=reward, observation=str(room), outcome=outcome)


def corridor() -> TrainConfig:
    """GiGPO on the corridor, with the shipped model of two million parameters."""
    return replace(
        grpo_chain(),
        env=Corridor(),
        rollout=Chains(num_chains=8, max_turn_tokens=3, max_response_tokens=32),
        advantage=GiGPO(),
        critic=NoCritic(),
        prompts_per_step=8,
    )
