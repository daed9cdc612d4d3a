"""The runs of ``test_ranks.py``: started by ``torchrun`` with a folder, and in the test itself."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch.distributed as dist

from spanwise.credit import TreeAdvantage
from spanwise.display import Display, TextConsole
from spanwise.envs.base import Reply, Task, Turn
from spanwise.learn.critic import NoCritic, ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.learn.update import Update
from spanwise.models.lora import LoRA
from spanwise.rollout.tree_search import TreeSearch
from spanwise.runtime.distributed import Processes, Sharding, leave_group
from spanwise.train import Stopped, TrainConfig, train
from spanwise.train.evaluate import Evaluation
from spanwise.train.task_sampling import draw_tasks
from tests.train.letters import Letters, letters
from tests.train.resumable import with_critic

STEPS = 10  # of all but the adapter


@dataclass(frozen=True, kw_only=True)
class TwoTurns(Letters):
    """The first answer is called back once; the second counts."""

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        if len(turns) == 1 and not turns[0].truncated:
            return Reply(stop="continue", observation="ab:")
        return await super().reply(task, turns)


def at2po() -> TrainConfig:
    config = letters(critic=NoCritic(), advantage=TreeAdvantage(), steps=STEPS, prompts_per_step=6)
    return replace(
        config,
        env=TwoTurns(),
        rollout=TreeSearch(
            num_chains=3, num_rounds=1, num_expansions=2, max_turn_tokens=4, max_response_tokens=16
        ),
        objective=Objective(clip_low=0.2, clip_high=0.28, entropy_bonus=0.01),
        # few tokens a micro-batch: the ranks get unequal numbers of them
        update=Update(learning_rate=1e-3, prompts_per_minibatch=3, tokens_per_microbatch=64),
        evaluation=Evaluation(num_tasks=7),
        kl=KLPenalty(coefficient=0.01),
    )


def sae(trunk: Literal["own", "policy"] = "own") -> TrainConfig:
    config = letters(
        critic=ValueHead(learning_rate=1e-3, pretraining_steps=1, trunk=trunk, trunk_gradient=0.1),
        steps=STEPS,
        prompts_per_step=6,
    )
    return replace(
        config,
        update=Update(learning_rate=1e-3, prompts_per_minibatch=3, tokens_per_microbatch=48),
        evaluation=Evaluation(num_tasks=7),
    )


def adapter() -> TrainConfig:
    """The critic's copy and the reference share the frozen weights of the policy."""
    config = sae()
    model = replace(config.model, lora=LoRA(rank=2))
    return replace(config, model=model, kl=KLPenalty(coefficient=0.01), steps=4)


def cases() -> dict[str, TrainConfig]:
    return {"at2po": at2po(), "sae": sae(), "sae_shared": sae("policy"), "adapter": adapter()}


def run_cases(folder: Path, sharding: Sharding) -> None:
    for name, config in cases().items():
        run(replace(config, processes=Processes(sharding=sharding)), folder / sharding / name)


def run(config: TrainConfig, folder: Path, *, resume: bool = False) -> None:
    display = Display(TextConsole(quiet=True))
    train(config, recipe="r", folder=folder, display=display, resume=resume)


def resumed_cases() -> dict[str, TrainConfig]:
    """Checkpoints of a policy and critic; of adapters alone; of one whole."""
    config = with_critic()
    adapter = replace(config, model=replace(config.model, lora=LoRA(rank=2)))
    replicate = replace(config, processes=Processes(sharding="replicate"))
    return {"critic": config, "adapter": adapter, "replicate": replicate}


def run_stopped(config: TrainConfig, folder: Path, *, rank: int) -> None:
    """A run that one of its processes is told to stop while it samples the last step."""
    calls = [0]

    def signalled(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == config.steps and int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw_tasks(*args)

    with patch("spanwise.train.task_sampling.draw_tasks", signalled):
        try:
            run(config, folder)
        except Stopped:
            return
    raise AssertionError("the run was not stopped")


def run_resumed(folder: Path) -> None:
    """Whole runs, stopped ones, and those stopped here and by one process resumed."""
    for name, config in resumed_cases().items():
        run(config, folder / "whole" / name)
        run_stopped(config, folder / "stopped" / name, rank=1)
        if os.environ["RANK"] == "0":
            shutil.copytree(folder / "stopped" / name, folder / "to_one" / name)
        dist.barrier()
        run(config, folder / "stopped" / name, resume=True)
        run(config, folder / "to_two" / name, resume=True)


if __name__ == "__main__":
    for kind in ("replicate", "fsdp"):
        run_cases(Path(sys.argv[1]), kind)
    run_resumed(Path(sys.argv[1]) / "resumed")
    leave_group()
