"""Small runs that a test can start as a process of its own, kill and go on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spanwise.envs.base import Reply, Task, Turn
from spanwise.learn.critic import NoCritic, ValueHead
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.run.folder import RunFolder
from spanwise.train.checkpoint import UNUSED
from spanwise.train.config import Checkpoints, TrainConfig
from tests.train.letters import Letters, letters

ROOT = Path(__file__).parent.parent.parent
TIMES = ("seconds/", "train_seconds", "peak_memory_mb", "abandoned_threads")
"""Figures of the process and not of what it learns."""


def plain() -> TrainConfig:
    return letters(critic=NoCritic(), steps=6, checkpoints=Checkpoints(every=2))


def with_critic() -> TrainConfig:
    """A critic that is fitted alone first, and an adaptive KL penalty."""
    critic = ValueHead(learning_rate=1e-2, pretraining_steps=3)
    kl = KLPenalty(coefficient=0.05, target=0.001)
    return letters(critic=critic, kl=kl, steps=4, checkpoints=Checkpoints(every=2))


def long() -> TrainConfig:
    """Longer than any test waits."""
    return letters(critic=NoCritic(), steps=10_000, checkpoints=Checkpoints(every=0))


@dataclass(frozen=True, kw_only=True)
class Blocking(Letters):
    """A reward that keeps the event loop from all else, for longer than any test waits."""

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        print("blocking", flush=True)
        time.sleep(1000)
        return await super().reply(task, turns)


def blocked() -> TrainConfig:
    return replace(plain(), env=Blocking())


def child(*words: str) -> subprocess.Popen[str]:
    """``python -m spanwise train`` with these words."""
    command = [sys.executable, "-m", "spanwise", "train", *words]
    # As many threads as the tests have: another number rounds sums in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    out, err = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err, text=True)


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if not name.startswith(TIMES)}


def abandoned_threads(folder: Path) -> dict[str, Any]:
    """All that a finished run left behind and that is to be the same, by file."""
    log = RunFolder.open(folder)
    found: dict[str, Any] = {
        "metrics": [untimed(line) for line in log.read_metrics()],
        "summary": untimed(log.read_summary()),
    }
    for path in sorted(folder.glob("trees/*")) + sorted(folder.glob("checkpoints/*/*")):
        name = str(path.relative_to(folder))
        if path.parent.suffix == UNUSED:
            continue
        if path.name == "state.json":
            found[name] = comparable_state(json.loads(path.read_text()))
        elif path.name != "manifest.json":  # it has the hash of the state
            found[name] = path.read_bytes()
    return found


def comparable_state(state: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on how long things took: the length of the metrics does."""
    return {k: v for k, v in untimed(state).items() if k != "metrics_bytes"}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The files that two runs do not have alike."""
    return sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
