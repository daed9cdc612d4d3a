"""Learning-rate schedules: a factor for each step, the same for policy and critic."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from spanwise.errors import SpanwiseError


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Factor of the learning rates of each training step, one for policy and critic.

    A function of the step's number alone, so a resumed run goes on exactly as it would have.
    While the critic alone is fitted, before the first step, its rate is not scaled. For a
    schedule of your own, subclass this in your own file.

    Example:
      >>> @dataclass(frozen=True, kw_only=True)
      ... class Halving(Schedule):
      ...     def __call__(self, step, num_steps):
      ...         return 0.5 ** (step - 1)
      >>> Halving()(3, 10)
      0.25
    """

    @abstractmethod
    def __call__(self, step: int, num_steps: int) -> float:
        """The factor of a step.

        Args:
          step: Number of the training step, from 1.
          num_steps: Training steps of the whole run.
        """


@dataclass(frozen=True, kw_only=True)
class WarmUp(Schedule):
    """A rise in a straight line, and after it what ``decay`` says.

    Example:
      >>> [Linear(warmup_steps=2)(step, 6) for step in range(1, 7)]
      [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    warmup_steps: int = 0
    """Steps over which the learning rates rise in a straight line to their full height."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise SpanwiseError(
                f"schedule.warmup_steps must be at least 0, got {self.warmup_steps}"
            )

    def __call__(self, step: int, num_steps: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        done, steps = step - self.warmup_steps - 1, num_steps - self.warmup_steps
        return self.decay(max(done, 0) / max(steps, 1))

    @abstractmethod
    def decay(self, progress: float) -> float:
        """The factor after the warm-up, from ``progress`` 0 towards 1 at the end of the run."""


@dataclass(frozen=True, kw_only=True)
class Constant(WarmUp):
    """Full height after the warm-up."""

    def decay(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class _Falling(WarmUp):
    floor: float = 0.0
    """Factor that the learning rates fall towards, from 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise SpanwiseError(f"schedule.floor must lie in [0, 1], got {self.floor}")


@dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
    """A straight fall from the end of the warm-up to the end of the run."""

    def decay(self, progress: float) -> float:
        return 1 - (1 - self.floor) * progress


@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """Half a cosine from the end of the warm-up to the end of the run.

    Example:
      >>> [round(Cosine(floor=0.1)(step, 4), 3) for step in range(1, 5)]
      [1.0, 0.868, 0.55, 0.232]
    """

    def decay(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
