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
from spanwise.rollout.failures import FailurePolicy
from spanwise.run.trackers import Tracker
from spanwise.runtime.distributed import Processes
from spanwise.runtime.watchdog import Watchdog
from spanwise.samplers.base import Engine
from spanwise.train.evaluate import Evaluation
from spanwise.train.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When a run is written down so that it can go on from there."""

    every: int = 10
    """Steps from one to the next, and after the last; 0: only when the run is stopped."""

    keep: int = 2
    """The newest so many are kept, and the one with the best held-out score."""

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
    """Where training starts."""

    sampler: Engine
    """The engine that draws turns from the model."""

    rollout: Rollout
    """How trajectories of a prompt are sampled: chains or tree search."""

    advantage: Advantage
    """The span of the credit: how rewards become advantages."""

    critic: Critic = NoCritic()
    """What predicts values, for credit that needs them."""

    overlong: Overlong = Overlong()
    """What becomes of answers that the token limit cuts."""

    kl: KLPenalty = KLPenalty()
    """What it costs to move away from the starting model."""

    importance: ImportanceCorrection = ImportanceCorrection()
    """What is done where the engine's log-probs are not the trainer's."""

    objective: Objective = Objective()
    """The span of the ratio: what is minimised."""

    update: Update = Update()
    """How a batch becomes optimizer steps."""

    schedule: Schedule = Constant()
    """By what the learning rates of policy and critic are multiplied in each step."""

    failures: FailurePolicy = FailurePolicy()
    """What becomes of tools, rewards and engine calls that fail."""

    processes: Processes = Processes()
    """How the processes of ``torchrun`` share the run."""

    watchdog: Watchdog = Watchdog()
    """What is said and done about waits without end."""

    evaluation: Evaluation = field(default_factory=Evaluation)
    """How the model is measured before and after."""

    steps: int = 100
    """Batches to sample and train on."""

    prompts_per_step: int = 64
    """Trees of each batch."""

    dynamic_sampling_rounds: int = 0
    """Leave out prompts whose branches all score alike and sample others in their place,
    up to so many times a step; 0 trains on all that was sampled."""

    max_off_policy_steps: Literal[0, 1] = 0
    """1: sample the next step while this one is trained on, from the weights before its
    update. Needs a correction of the mismatch."""

    seed: int = 0
    """Every draw of the run follows from it."""

    keep_trees_every: int = 1
    """Write the trees of every so many steps, and of the last; 0 keeps none."""

    checkpoints: Checkpoints = Checkpoints()
    """When the run is written down so that it can be resumed."""

    metrics: tuple[Metric, ...] = ()
    """Functions of your own, from the trees and the batch of a step to numbers by name."""

    trackers: tuple[type[Tracker], ...] = ()
    """Where the metrics are copied to besides the run folder: tensorboard, wandb, trackio."""

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
        if self.keep_trees_every < 0:
            raise SpanwiseError(f"keep_trees_every must be at least 0, got {self.keep_trees_every}")
        if self.max_off_policy_steps and not self.importance.corrects:
            raise SpanwiseError(
                "max_off_policy_steps=1 trains on what older weights sampled; have that corrected "
                "with importance.tis_cap, such as 2, or importance.rejection_bound"
            )
        if self.dynamic_sampling_rounds < 0:
            raise SpanwiseError(
                f"dynamic_sampling_rounds must be at least 0, got {self.dynamic_sampling_rounds}"
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
