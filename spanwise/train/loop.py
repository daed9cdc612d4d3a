"""The loop, readable top to bottom: sample trees, give credit, update, write down."""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.display import Display
from spanwise.envs.base import Task
from spanwise.rollout.base import Site
from spanwise.rollout.seeds import seed_of
from spanwise.runlog import RunLog, tree_record
from spanwise.train.config import TrainConfig, resolved
from spanwise.train.evaluate import measure
from spanwise.train.metrics import tree_metrics
from spanwise.tree import Tree


def train(
    config: TrainConfig,
    *,
    recipe: str,
    folder: Path,
    display: Display,
    arguments: Sequence[str] = (),
) -> RunLog:
    """Train, measure before and after, and leave a run folder.

    Args:
      config: What to do.
      recipe: Name of the recipe it came from, for the record.
      folder: The run folder, new.
      display: Where progress is shown.
      arguments: What the command line changed in the recipe, so that both together give
        the configuration again.

    Returns:
      The finished run's log.

    Raises:
      ModelError: if the model cannot be used.
      ValueError: if the tokenizer cannot write what the environment needs.
      RunError: if the folder holds a run or cannot be written.
    """
    tokenizer = config.model.load_tokenizer()
    config.env.check(tokenizer)
    log = RunLog.create(
        folder, {"recipe": recipe, "arguments": list(arguments), "config": resolved(config)}
    )
    model = config.model.load()
    sampler = config.sampler.build(model, tokenizer)
    site = Site(env=config.env, sampler=sampler, tokenizer=tokenizer, seed=config.seed)
    optimizer = config.update.optimizer(model)
    pool = config.env.tasks("train")

    with display.waiting("measuring the model before training"):
        before = measure(site, config.rollout, config.evaluation)
    started, sampled_tokens, trained_tokens = time.monotonic(), 0, 0
    with display.steps(config.steps) as progress:
        for step in range(1, config.steps + 1):
            clock = Clock()
            tasks = draw_tasks(pool, config.prompts_per_step, config.seed, step)
            trees = asyncio.run(_sample(site, config, tasks, step))
            clock.lap("rollout")

            batch = Batch.from_trees(trees)
            advantages = config.advantage(batch)
            clock.lap("credit")

            figures = config.update(
                model,
                optimizer,
                batch,
                advantages,
                config.objective,
                seed=seed_of(config.seed, step, "update"),
            )
            sampler.update_weights(model)
            clock.lap("update")

            metrics = {"step": step, **tree_metrics(trees, batch), **figures}
            sampled_tokens += metrics["sampled_tokens"]
            trained_tokens += config.update.epochs * metrics["trained_tokens"]
            if _now(step, config.evaluation.every, config.steps + 1):
                held_out = measure(site, config.rollout, config.evaluation).summary()
                metrics["held_out/exact_match"] = held_out["exact_match"]
                metrics["held_out/greedy"] = held_out["greedy"]
                clock.lap("evaluation")
            metrics |= {"total_sampled_tokens": sampled_tokens, **clock.seconds()}
            log.write_metrics(metrics)
            if _now(step, config.keep_trees_every, config.steps):
                values = config.advantage.node_values(batch)
                log.write_trees(step, records(trees, tasks, batch, advantages, values))
            progress.step(metrics)
    train_seconds = time.monotonic() - started

    with display.waiting("measuring the model after training"):
        after = measure(site, config.rollout, config.evaluation)
    save_checkpoint(log.checkpoint_path("final"), model, tokenizer)
    log.write_summary(
        {
            "recipe": recipe,
            "seed": config.seed,
            "before": before.summary(),
            "after": after.summary(),
            "train_seconds": round(train_seconds, 1),
            "sampled_tokens": sampled_tokens,
            "trained_tokens": trained_tokens,
            "peak_memory_mb": peak_memory_mb(),
        }
    )
    sampler.close()
    return log


def draw_tasks(pool: Sequence[Task], count: int, seed: int, step: int) -> list[Task]:
    """The tasks of one step: passes through the pool, each in an order of its own.

    Example:
      >>> pool = [Task(id=str(i), question="?", answers=("!",)) for i in range(4)]
      >>> seen = [t.id for step in (1, 2) for t in draw_tasks(pool, 2, 0, step)]
      >>> sorted(seen)
      ['0', '1', '2', '3']
    """
    orders: dict[int, list[int]] = {}
    tasks: list[Task] = []
    for position in range((step - 1) * count, step * count):
        epoch, index = divmod(position, len(pool))
        if epoch not in orders:
            orders[epoch] = list(range(len(pool)))
            random.Random(seed_of(seed, epoch, "order")).shuffle(orders[epoch])
        tasks.append(pool[orders[epoch][index]])
    return tasks


async def _sample(site: Site, config: TrainConfig, tasks: Sequence[Task], step: int) -> list[Tree]:
    return list(await asyncio.gather(*(config.rollout(site, task, step=step) for task in tasks)))


def records(
    trees: Sequence[Tree],
    tasks: Sequence[Task],
    batch: Batch,
    advantages: Tensor,
    values: Tensor | None,
) -> list[dict[str, Any]]:
    """The trees of a step with the credit of each node, for the run folder."""
    at = batch.nodes[batch.mask]
    sums = torch.zeros(len(batch.parents)).index_add(0, at, advantages[batch.mask].float())
    counts = torch.bincount(at, minlength=len(batch.parents)).clamp(min=1)
    per_node = (sums / counts).tolist()
    per_node_values = None if values is None else values.tolist()
    found: list[dict[str, Any]] = []
    first = 0
    for tree, task in zip(trees, tasks, strict=True):
        nodes = slice(first, first + len(tree.nodes))
        first += len(tree.nodes)
        found.append(
            tree_record(
                tree,
                {"question": task.question, "answers": task.answers, "info": dict(task.info)},
                advantages=per_node[nodes],
                values=None if per_node_values is None else per_node_values[nodes],
            )
        )
    return found


def save_checkpoint(folder: Path, model: Any, tokenizer: Any) -> None:
    """The model in Hugging Face format, weights as safetensors."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak_memory_mb() -> int:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def _now(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[name] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {f"seconds/{name}": round(value, 4) for name, value in self._laps.items()}
