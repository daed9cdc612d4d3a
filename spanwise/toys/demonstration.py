"""Worked examples that a base model is fitted on, for any embedded task."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from spanwise.errors import SpanwiseError


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One dialogue: a question, then turns and what the environment answered to each."""

    question: str
    turns: tuple[tuple[str, str], ...]
    """Model's text and observation; the last observation is empty."""

    answer: str
    """Right answer, whether or not the dialogue gets there."""

    faults: tuple[str, ...] = ()
    """Names of the faults made, in order, after the fields that give their odds."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationSource(ABC):
    """Draws imperfect demonstrations; each kind of fault has a field with its probability.

    The faults are what reinforcement learning has to undo. A slip is rare wherever it
    occurs: sampling makes it and the most likely token does not. A habit is the rule where
    it applies, and the most likely token makes it too.
    """

    FAULTS: ClassVar[tuple[str, ...]] = ()
    """The fields that are probabilities of faults."""

    def __post_init__(self) -> None:
        for name in self.FAULTS:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SpanwiseError(f"{name} is a probability, got {getattr(self, name)}")

    @abstractmethod
    def draw(self, rng: random.Random) -> Demonstration:
        """One demonstration; the same draw for the same state of ``rng``."""

    @abstractmethod
    def words(self) -> list[str]:
        """Every word that demonstrations and their task may hold, each once, in a fixed order."""

    def slips(self, fault: str, rng: random.Random, faults: list[str]) -> bool:
        """Whether a fault is made here, by its probability; one that is joins ``faults``."""
        slipped = rng.random() < getattr(self, fault)
        faults += [fault] * slipped
        return slipped

    def right(self) -> Self:
        """The same work, done right every time."""
        return replace(self, **dict.fromkeys(self.FAULTS, 0.0))
