"""The one object that describes a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanwise.credit import Advantage
from spanwise.envs.base import Environment
from spanwise.models.loading import Model
from spanwise.rollout.base import Rollout
from spanwise.samplers.base import Engine
from spanwise.train.evaluate import Evaluation
from spanwise.train.objective import Objective
from spanwise.train.update import Update


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

    objective: Objective = Objective()
    """The span of the ratio: what is minimised."""

    update: Update = Update()
    """How a batch becomes optimizer steps."""

    evaluation: Evaluation = field(default_factory=Evaluation)
    """How the model is measured before and after."""

    steps: int = 100
    """Batches to sample and train on."""

    prompts_per_step: int = 64
    """Trees of each batch."""

    seed: int = 0
    """Every draw of the run follows from it."""

    keep_trees_every: int = 1
    """Write the trees of every so many steps, and of the last; 0 keeps none."""

    folder: Path | None = None
    """The run folder; by default runs/RECIPE-DATE-TIME."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.prompts_per_step < 1:
            raise ValueError(
                f"steps and prompts_per_step must be at least 1, got {self.steps} and "
                f"{self.prompts_per_step}"
            )


def resolved(config: Any) -> Any:
    """A configuration as plain JSON values, each component with its class name.

    Example:
      >>> resolved(Objective(ratio_span="whole"))["ratio_span"]
      'whole'
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: resolved(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"class": type(config).__name__, **values}
    if isinstance(config, dict):
        return {str(k): resolved(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [resolved(v) for v in config]
    return str(config) if isinstance(config, Path) else config
