"""The one object that describes a run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spanwise.credit import Advantage
from spanwise.envs.base import Environment
from spanwise.errors import SpanwiseError
from spanwise.learn.critic import Critic, NoCritic
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty, Overlong
from spanwise.learn.schedule import Constant, Schedule
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.rollout.base import Rollout
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.failures import FailurePolicy
from spanwise.run.trackers import Tracker
from spanwise.runtime.distributed import Processes
from spanwise.runtime.watchdog import Watchdog
from spanwise.samplers.base import Engine, Sampler
from spanwise.train.evaluate import Evaluation
from spanwise.train.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints that a run can be resumed from."""

    every: int = 10
    """Steps from one to the next, and after the last; 0: only when the run is stopped."""

    keep: int = 2
    """Number of newest checkpoints to keep, besides the one with the best held-out score."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise SpanwiseError(
                f"checkpoints need every >= 0 and keep >= 1, got {self.every} and {self.keep}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on. A recipe is a function that returns one."""

    env: Environment
    """The tasks."""

    model: Model = Model()
    """The model that training starts from."""

    sampler: Engine
    """The engine that draws turns from the model."""

    rollout: Rollout
    """Sampling of a prompt's trajectories: chains or tree search."""

    advantage: Advantage
    """The credit: how rewards become advantages, over which spans."""

    critic: Critic = NoCritic()
    """The predictor of values, for credit that needs them."""

    overlong: Overlong = Overlong()
    """Treatment of answers that the token limit cuts."""

    kl: KLPenalty = KLPenalty()
    """Penalty for moving away from the starting model."""

    importance: ImportanceCorrection = ImportanceCorrection()
    """Correction where the engine's log-probs are not the trainer's."""

    objective: Objective = Objective()
    """The policy loss, and the spans of its ratio."""

    update: Update = Update()
    """The optimizer steps on a batch."""

    schedule: Schedule = Constant()
    """Factor of the learning rates of policy and critic in each step."""

    failures: FailurePolicy = FailurePolicy()
    """Treatment of tools, rewards and engine calls that fail."""

    processes: Processes = Processes()
    """Division of the run among the processes of ``torchrun``."""

    watchdog: Watchdog = Watchdog()
    """Limits on how long a run may wait without progress."""

    evaluation: Evaluation = field(default_factory=Evaluation)
    """Measurement of the model on held-out tasks, before and after."""

    steps: int = 100
    """Batches to sample and train on."""

    prompts_per_step: int = 64
    """Trees of each batch."""

    dynamic_sampling_rounds: int = 0
    """Most times a step that prompts whose branches all score alike are replaced by others;
    0 trains on all that was sampled."""

    max_off_policy_steps: Literal[0, 1] = 0
    """Steps that sampling may be ahead of the weights; 1: the next step is sampled while this
    one is trained on. Needs a correction of the mismatch."""

    seed: int = 0
    """Seed of every draw of the run."""

    keep_trees_every: int = 1
    """Steps from one whose trees are written to the next, besides the last; 0 keeps none."""

    checkpoints: Checkpoints = Checkpoints()
    """The checkpoints that the run can be resumed from."""

    metrics: tuple[Metric, ...] = ()
    """Functions of your own, from the trees and the batch of a step to numbers by name."""

    trackers: tuple[type[Tracker], ...] = ()
    """Places that the metrics are copied to: tensorboard, wandb, trackio or a class of yours."""

    folder: Path | None = None
    """The run folder; by default runs/RECIPE-DATE-TIME."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.prompts_per_step < 1:
            raise SpanwiseError(
                f"steps and prompts_per_step must be at least 1, got {self.steps} and "
                f"{self.prompts_per_step}"
            )
        if self.rollout.sampling.temperature == 0:
            raise SpanwiseError(
                "rollout.sampling.temperature is 0: all branches would be the same, and none better"
            )
        if self.rollout.sampling.top_k == 1:
            raise SpanwiseError(
                "rollout.sampling.top_k is 1: all branches would be the same, and none better"
            )
        if self.advantage.compares and self.rollout.num_leaves == 1:
            raise SpanwiseError(
                f"{type(self.advantage).__name__} compares the branches of a prompt, and "
                "rollout.num_chains gives each but one; take two or more"
            )
        for name in ("keep_trees_every", "dynamic_sampling_rounds"):
            if getattr(self, name) < 0:
                raise SpanwiseError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_off_policy_steps and not self.importance.corrects:
            raise SpanwiseError(
                "max_off_policy_steps=1 trains on what older weights sampled; have that corrected "
                "with importance.tis_cap, such as 2, or importance.rejection_bound"
            )
        has_critic, credit = not isinstance(self.critic, NoCritic), type(self.advantage).__name__
        if self.advantage.needs_values and not has_critic:
            raise SpanwiseError(f"{credit} needs values: give the recipe a critic, ValueHead()")
        if has_critic and not self.advantage.needs_values:
            raise SpanwiseError(f"{credit} reads no values: leave out the critic")
        limit, penalty = self.rollout.max_response_tokens, self.overlong.penalty_tokens
        if penalty > limit:
            raise SpanwiseError(
                f"overlong.penalty_tokens, the last so many before the limit, is {penalty}, and "
                f"rollout.max_response_tokens is {limit}"
            )
        if self.overlong.on_truncation == "bootstrap" and not has_critic:
            raise SpanwiseError(
                'overlong.on_truncation="bootstrap" needs a critic to bootstrap from'
            )

    def context(self, sampler: Sampler, tokenizer: Any, seed: int) -> RolloutContext:
        """The surroundings of rollouts of this configuration."""
        return RolloutContext(
            env=self.env, sampler=sampler, tokenizer=tokenizer, seed=seed, failures=self.failures
        )

    def bind(self, tokenizer: Any) -> TrainConfig:
        """The same configuration once its spans have looked up what they need."""
        return dataclasses.replace(
            self,
            advantage=self.advantage.bind(tokenizer),
            objective=self.objective.bind(tokenizer),
            importance=self.importance.bind(tokenizer),
        )


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values, each component with its class name.

    A function or class is ``module:name``.

    Example:
      >>> to_json(Objective(clip_low=0.1))["ratio_spans"]
      {'class': 'Turn'}
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": type(config).__name__, **values}
    if isinstance(config, dict):
        return {str(k): to_json(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(v) for v in config]
    if callable(config):
        return f"{config.__module__}:{getattr(config, '__qualname__', type(config).__name__)}"
    infinite = isinstance(config, float) and not math.isfinite(config)  # JSON has no such number
    return str(config) if infinite or isinstance(config, Path) else config
