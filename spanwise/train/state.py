"""A run in progress: its parts and its state."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from filelock import FileLock

from spanwise.envs.base import Task
from spanwise.errors import printable
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
    """Progress of a run: with the learner's weights and optimizers, all that resuming needs."""

    step: int = 0
    """Number of training steps that are done."""

    before: dict[str, Any] | None = None
    """Measurement before training; None until it is taken."""

    critic_history: list[float] = field(default_factory=list[float])
    """Explained variance on each batch that the critic alone was fitted to."""

    critic_fitted: bool = False
    """Whether the critic has been fitted alone."""

    sampled_tokens: int = 0
    """Number of tokens that the model has sampled for training."""

    trained_tokens: int = 0
    """Number of tokens trained on, each counted once per epoch."""

    train_seconds: float = 0.0
    """Seconds spent on fitting the critic and on training, measurements in between included."""

    held_out: float | None = None
    """Held-out success, or else score, of sampled answers after ``step``, if measured then."""

    metrics_bytes: int = 0
    """Length of the metrics file after the last line, in bytes."""

    settled: bool = True
    """False while an update is under way: the weights are then ahead of these counts."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run."""

    recipe: str
    config: TrainConfig
    log: RunFolder
    lock: FileLock | None
    """Held while this process writes to the run folder; None on ranks that do not."""

    trackers: Sequence[Tracker]
    tokenizer: Any
    settings: Mapping[str, Any]
    """The configuration with every default filled in, as plain values."""

    context: RolloutContext
    journal: StepJournal
    learner: Learner
    sampled: Any
    """The policy as the sampler reads it: the learner's own, or a whole copy of it."""

    pool: Sequence[Task]
    """Tasks that prompts are drawn from."""

    state: RunState
    ranks: Ranks
    prefetcher: Prefetcher = field(default_factory=Prefetcher)
    """Samples the next step during an update, with ``max_off_policy_steps``."""

    def count(self, metrics: Mapping[str, Any], seconds: float, *, epochs: int) -> None:
        """Add a batch's tokens and seconds to the state, its trained tokens once per epoch."""
        self.state.sampled_tokens += metrics["sampled_tokens"]
        self.state.trained_tokens += epochs * metrics["trained_tokens"]
        self.state.train_seconds += seconds

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append a line of metrics to the run folder and to the trackers, on the main rank."""
        if not self.ranks.is_main:
            return
        self.state.metrics_bytes = self.log.write_metrics(metrics)
        for tracker in self.trackers:
            tracker.write(metrics)

    def update_sampler(self) -> None:
        """Have the sampler use the policy as it is now; every rank has to call it."""
        refresh(self.sampled, self.learner.model)
        self.context.sampler.update_weights(self.sampled)

    def tell(self, text: str) -> None:
        """Show a person one line, whichever process this is."""
        process = f", process {self.ranks.rank}" if self.ranks.size > 1 else ""
        print(f"spanwise{process}: {printable(text)}", file=sys.stderr, flush=True)

    def training_context(self) -> RolloutContext:
        """The context in which trees to train on are sampled.

        Finished turns go into the journal, unless the run has several processes.
        """
        return replace(self.context, journal=self.journal if self.ranks.size == 1 else None)

    def close(self) -> None:
        """Stop the sampler, and have the trackers write what they have buffered."""
        self.prefetcher.close()
        self.journal.close()
        if self.lock is not None:
            self.lock.release()
        self.context.sampler.close()
        for tracker in self.trackers:
            tracker.close()


class Clock:
    """Measures the seconds of each phase of a step."""

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
