"""A game with a state: a walk in the wind, which is drawn from the state's own generator."""

from __future__ import annotations

import copy
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

from spanwise.envs.base import Reply, Task, Turn
from spanwise.envs.stateful import StatefulEnvironment

GOAL = 3


@dataclass
class Walk:
    rng: random.Random
    serial: int
    at: int = 0
    turns: int = 0


@dataclass(frozen=True, kw_only=True)
class WindyWalk(StatefulEnvironment[Walk]):
    """``+`` and ``-`` walk a step, and the wind adds -1, 0 or 1; home is 3. Each step costs 0.1."""

    log: dict[str, Any] = field(default_factory=lambda: {"open": set(), "steps": 0, "made": 0})
    stop_strings = (";",)

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=f"{split}-{i}", question=f"Q{i}:") for i in range(4)]

    def messages(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    def start(self, task: Task, seed: int) -> Walk:
        return self.opened(Walk(random.Random(seed), 0))

    def step(self, state: Walk, turn: Turn) -> Reply:
        assert state.serial in self.log["open"], "a closed state was stepped"
        self.log["steps"] += 1
        state.turns += 1
        if turn.text.rstrip(";") not in ("+", "-") or turn.truncated:
            return Reply(stop="malformed", reward=-1.0)
        state.at += (1 if turn.text[0] == "+" else -1) + state.rng.randint(-1, 1)
        if state.at >= GOAL:
            return Reply(stop="end", reward=1.0, success=True)
        if state.turns == 8:
            return Reply(stop="budget", reward=-1.0, success=False)
        return Reply(stop="continue", observation=f"[{state.at}]", reward=-0.1)

    def copy(self, state: Walk) -> Walk:
        return self.opened(copy.deepcopy(state))

    def close(self, state: Walk) -> None:
        self.log["open"].remove(state.serial)  # raises if it is closed twice

    def opened(self, state: Walk) -> Walk:
        self.log["made"] += 1
        state.serial = self.log["made"]
        self.log["open"].add(state.serial)
        return state


class ReplayedWalk(WindyWalk):
    fork_ways = ("replay",)

    def copy(self, state: Walk) -> Walk:
        raise AssertionError("not asked for")


saved: dict[str, Walk] = {}
names = itertools.count()


class SavedWalk(ReplayedWalk):
    fork_ways = ("snapshot", "replay")

    async def snapshot(self, state: Walk) -> str:
        saved[name := str(next(names))] = copy.deepcopy(state)
        return name

    async def restore(self, task: Task, snapshot: str) -> Walk:
        return self.opened(copy.deepcopy(saved[snapshot]))

    async def discard(self, snapshot: str) -> None:
        del saved[snapshot]
