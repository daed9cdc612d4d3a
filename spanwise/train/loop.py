"""The loop, readable top to bottom: sample trees, give credit, update, write down."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.display import Display
from spanwise.envs.base import Task
from spanwise.losses import span_ratio
from spanwise.rollout.base import Site
from spanwise.rollout.seeds import seed_of
from spanwise.runlog import RunLog, tree_record
from spanwise.trackers import open_trackers
from spanwise.train.config import TrainConfig, resolved
from spanwise.train.critic import still_rising
from spanwise.train.evaluate import measure
from spanwise.train.learner import Learner
from spanwise.train.memory import check_memory
from spanwise.train.metrics import tree_metrics
from spanwise.train.sampling import draw_tasks, rollouts, sample_step
from spanwise.tree import Tree

LAST_STEPS = 5
"""The explained variance of a run is the mean over so many of its last steps."""


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
    check_memory(config)
    advantage = config.advantage.prepared(tokenizer)
    settings = resolved(config)
    log = RunLog.create(
        folder, {"recipe": recipe, "arguments": list(arguments), "config": settings}
    )
    trackers = open_trackers(config.trackers, folder, settings)

    def write(metrics: Mapping[str, Any]) -> None:
        log.write_metrics(metrics)
        for tracker in trackers:
            tracker.write(metrics)

    model = config.model.load()
    sampler = config.sampler.build(model, tokenizer)
    site = Site(env=config.env, sampler=sampler, tokenizer=tokenizer, seed=config.seed)
    learner = Learner(config, model, advantage)
    pool = config.env.tasks("train")

    with display.waiting("measuring the model before training"):
        before = measure(site, config.rollout, config.evaluation)
    started, sampled_tokens, trained_tokens = time.monotonic(), 0, 0
    if learner.critic is not None and learner.critic.pretraining_steps:
        with display.waiting("fitting the critic, the policy is frozen"):
            for metrics in pretrain_critic(learner, site, pool):
                write(metrics)
                sampled_tokens += metrics["sampled_tokens"]
                done, explained = metrics["critic_batch"], metrics["explained_variance"]
                display.console.print(
                    f"critic batch {done}, at most {learner.critic.pretraining_steps}: explains "
                    f"{explained:.2f} of the variance",
                    highlight=False,
                )
    with display.steps(config.steps) as progress:
        for step in range(1, config.steps + 1):
            clock = Clock()
            sampled = asyncio.run(sample_step(site, config, pool, step))
            clock.lap("rollout")

            batch = learner.batch(sampled.trees)
            metrics = {"step": step, **tree_metrics(sampled.all_trees, batch)}
            if config.refill_rounds:
                metrics["dropped_prompts"] = len(sampled.all_trees) - len(sampled.trees)
            clock.lap("scoring")
            if batch is None:
                metrics["no_signal"] = 1.0
            else:
                advantages = advantage(batch)
                clock.lap("credit")
                metrics |= learner.update(
                    batch, advantages, seed=seed_of(config.seed, step, "update")
                )
                sampler.update_weights(model)
                clock.lap("update")
                if _now(step, config.keep_trees_every, config.steps):
                    values = advantage.node_values(batch)
                    arrays = token_arrays(config, model, batch, advantages)
                    kept = records(sampled.trees, sampled.tasks, batch, arrays, values)
                    log.write_trees(step, kept)
                    clock.lap("record")

            sampled_tokens += metrics["sampled_tokens"]
            trained_tokens += config.update.epochs * metrics["trained_tokens"]
            if _now(step, config.evaluation.every, config.steps + 1):
                held_out = measure(site, config.rollout, config.evaluation).summary()
                metrics["held_out/exact_match"] = held_out["exact_match"]
                metrics["held_out/greedy"] = held_out["greedy"]
                clock.lap("evaluation")
            metrics |= {"total_sampled_tokens": sampled_tokens, **clock.seconds()}
            write(metrics)
            progress.step(metrics)
    train_seconds = time.monotonic() - started

    with display.waiting("measuring the model after training"):
        after = measure(site, config.rollout, config.evaluation)
    save_checkpoint(log.checkpoint_path("final"), learner, tokenizer)
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
            **critic_summary(log.read_metrics()),
        }
    )
    sampler.close()
    for tracker in trackers:
        tracker.close()
    return log


def pretrain_critic(learner: Learner, site: Site, pool: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """Fit the critic to the frozen policy until its explained variance stops rising.

    Each batch is sampled afresh and predicted before it is trained on. Their metrics are
    those of step 0.
    """
    config, critic = learner.config, learner.critic
    assert critic is not None
    history: list[float] = []
    for number in range(1, critic.pretraining_steps + 1):
        clock = Clock()
        tasks = draw_tasks(pool, config.prompts_per_step, config.seed, 1 - number)
        trees = asyncio.run(rollouts(site, config, tasks, 1 - number))
        clock.lap("rollout")
        batch = learner.batch(trees)
        metrics = {"step": 0, "critic_batch": number, **tree_metrics(trees, batch)}
        if batch is not None:
            metrics |= learner.fit_critic(batch, seed=seed_of(config.seed, 1 - number, "critic"))
        clock.lap("update")
        history.append(metrics.setdefault("explained_variance", 0.0))
        yield {**metrics, **clock.seconds()}
        if not still_rising(history):
            return


def critic_summary(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much of the variance of its targets the critic explained; nothing without one."""
    explained = {False: [], True: []}
    for line in metrics:
        if "explained_variance" in line:
            explained["critic_batch" in line].append(line["explained_variance"])
    newest = explained[False][-LAST_STEPS:]
    if not newest:
        return {}
    return {
        "explained_variance": sum(newest) / len(newest),
        "pretraining_explained_variance": explained[True],
    }


def token_arrays(
    config: TrainConfig, model: Any, batch: Batch, advantages: Tensor
) -> dict[str, Tensor]:
    """What the run folder keeps of each token of a step, ``[N, T]`` each.

    ``ratio`` is the span's, after the update against before it: how far the step moved it.
    """
    found = {"advantages": advantages}
    if batch.values is not None:
        found["values"] = batch.values
    if batch.token_entropies is not None:
        found["entropies"] = batch.token_entropies
    if batch.logprobs is not None:
        after = config.update.scored(model, batch).logprobs
        assert after is not None
        found["ratio"] = span_ratio(after, batch.logprobs, config.objective.ratio_spans(batch))
    return found


def records(
    trees: Sequence[Tree],
    tasks: Sequence[Task],
    batch: Batch,
    arrays: Mapping[str, Tensor],
    values: Tensor | None,
) -> list[dict[str, Any]]:
    """The trees of a step with the credit of each node and token, for the run folder."""
    at = batch.nodes[batch.mask]
    given = arrays["advantages"][batch.mask].float()
    sums = torch.zeros(len(batch.parents)).index_add(0, at, given)
    counts = torch.bincount(at, minlength=len(batch.parents)).clamp(min=1)
    per_node = (sums / counts).tolist()
    per_node_values = None if values is None else values.tolist()
    per_token = by_node(batch, arrays)
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
                tokens=per_token[nodes],
            )
        )
    return found


def by_node(batch: Batch, arrays: Mapping[str, Tensor]) -> list[dict[str, list[float]]]:
    """Of each node, the figures of its tokens in the first row that holds it."""
    found: list[dict[str, list[float]]] = [{} for _ in batch.parents]
    for row, nodes in enumerate(batch.nodes):
        for node in nodes[nodes >= 0].unique().tolist():
            if not found[node]:
                here = nodes == node
                found[node] = {name: of[row, here].tolist() for name, of in arrays.items()}
    return found


def save_checkpoint(folder: Path, learner: Learner, tokenizer: Any) -> None:
    """The policy in Hugging Face format, and the critic; all weights as safetensors."""
    learner.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if learner.critic is not None:
        learner.critic.model.save(folder)


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
