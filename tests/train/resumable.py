"""Small runs that a test can start as a process of its own, kill and go on with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spanwise.envs.base import Reply, Task, Turn
from spanwise.learn.critic import NoCritic, ValueHead
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.learn.schedule import Cosine
from spanwise.train.config import Checkpoints, TrainConfig
from tests.train.letters import Letters, letters

ROOT = Path(__file__).parent.parent.parent


def plain() -> TrainConfig:
    """Without a critic; the learning rate rises over three steps and falls again."""
    return letters(
        critic=NoCritic(),
        steps=6,
        schedule=Cosine(warmup_steps=3),
        checkpoints=Checkpoints(every=2),
    )


def with_critic() -> TrainConfig:
    """A critic that is fitted alone first, and a KL penalty."""
    critic = ValueHead(learning_rate=1e-2, pretraining_steps=3)
    kl = KLPenalty(coefficient=0.05)
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
