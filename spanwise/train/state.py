"""A run in progress: its parts, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from filelock import FileLock

from spanwise.envs.base import Task
from spanwise.learn.learner import Learner
from spanwise.models.sampling_copy import refresh
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.journal import StepJournal
from spanwise.run.folder import RunFolder
from spanwise.run.trackers import Tracker
from spanwise.runtime.distributed import Ranks
from spanwise.train.config import TrainConfig
from spanwise.train.prefetch import Prefetcher


@dataclass(kw_only=True)
class RunState:
    """How far a run is; with the learner's weights and optimizers, all that it goes on from."""

    step: int = 0
    """Training steps that are done."""

    before: dict[str, Any] | None = None
    """The measurement before training; None: not taken yet."""

    critic_history: list[float] = field(default_factory=list[float])
    """Explained variance of each batch that the critic alone was fitted on."""

    critic_fitted: bool = False
    """Whether fitting the critic alone is over."""

    sampled_tokens: int = 0
    """By the model, for training."""

    trained_tokens: int = 0
    """Each as often as it was trained on."""

    train_seconds: float = 0.0
    """Of fitting the critic and training, measurements during training included."""

    held_out: float | None = None
    """The sampled held-out success, or else score, after ``step``, if it was measured then."""

    metrics_bytes: int = 0
    """Length of the metrics when they were last written."""

    settled: bool = True
    """False while the weights are ahead of what is counted here."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run."""

    recipe: str
    config: TrainConfig
    log: RunFolder
    lock: FileLock | None
    """Held while this process writes to the run folder; None where another rank does."""

    trackers: Sequence[Tracker]
    tokenizer: Any
    settings: Mapping[str, Any]
    """The resolved configuration."""

    context: RolloutContext
    journal: StepJournal
    learner: Learner
    sampled: Any
    """The policy as the sampler gets it: the learner's, or a copy that is whole and at rest."""

    pool: Sequence[Task]
    """The tasks to train on."""

    state: RunState
    ranks: Ranks
    prefetcher: Prefetcher = field(default_factory=Prefetcher)
    """The sampling of the next step, with ``max_off_policy_steps``."""

    def count(self, metrics: Mapping[str, Any], seconds: float, *, epochs: int) -> None:
        """Add what a batch took to the state, ``epochs`` passes over its trained tokens."""
        self.state.sampled_tokens += metrics["sampled_tokens"]
        self.state.trained_tokens += epochs * metrics["trained_tokens"]
        self.state.train_seconds += seconds

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append a line of metrics to the run folder, and copy it to the trackers.

        The leading rank alone does.
        """
        if not self.ranks.is_main:
            return
        self.state.metrics_bytes = self.log.write_metrics(metrics)
        for tracker in self.trackers:
            tracker.write(metrics)

    def update_sampler(self) -> None:
        """Sample from the policy as it is now; every rank has to call it."""
        refresh(self.sampled, self.learner.model)
        self.context.sampler.update_weights(self.sampled)

    def tell(self, text: str) -> None:
        """Show a person one line, whichever process this is."""
        process = f", process {self.ranks.rank}" if self.ranks.size > 1 else ""
        print(f"spanwise{process}: {text}", file=sys.stderr, flush=True)

    def training_context(self) -> RolloutContext:
        """Where the trees to train on are grown: finished turns go into the journal.

        One of several processes keeps none.
        """
        return replace(self.context, journal=self.journal if self.ranks.size == 1 else None)

    def close(self) -> None:
        """Stop the sampler and write out what the trackers hold back."""
        self.prefetcher.close()
        self.journal.close()
        if self.lock is not None:
            self.lock.release()
        self.context.sampler.close()
        for tracker in self.trackers:
            tracker.close()


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[name] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {f"seconds/{name}": round(value, 4) for name, value in self._laps.items()}

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._started
