"""Worked chains of sums, with slips and one habit, to fit a base model on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from spanwise.envs.chain import (
    LETTERS,
    WORDS,
    Step,
    Sum,
    applied,
    check_lengths,
    worked_step,
    worked_text,
)
from spanwise.envs.worked import Demonstration, DemonstrationSource


@dataclass(frozen=True, kw_only=True)
class ChainDemonstrations(DemonstrationSource):
    """How chains are worked, and how often each fault is made, at each step.

    After a fault the work goes on from the wrong result.

    Example:
      >>> right = ChainDemonstrations(min_numbers=3, max_numbers=3).right()
      >>> demonstration = right.draw(random.Random(16))
      >>> demonstration.question
      '3 a - 7 b - 6 ='
      >>> demonstration.turns[0][0]
      'a 3 - 7 = 6 ; b 6 - 6 = 0 # 0 .'
    """

    FAULTS: ClassVar[tuple[str, ...]] = ("wrong_result", "skipped_step", "wrong_digit", "habit")

    min_numbers: int = 8
    max_numbers: int = 14

    wrong_result: float = 0.04
    """Any digit for the result of a step."""

    skipped_step: float = 0.02
    """Leave a step out."""

    wrong_digit: float = 0.02
    """Copy another digit than the question has."""

    habit: float = 0.6
    """Make the result of ``- 7`` one too high: more often than not, wherever it comes up."""

    def __post_init__(self) -> None:
        check_lengths(self.min_numbers, self.max_numbers)
        super().__post_init__()

    def draw(self, rng: random.Random) -> Demonstration:
        drawn = Sum.draw(rng, self.min_numbers, self.max_numbers)
        faults: list[str] = []
        written: list[str] = []
        value = drawn.first
        for letter, step in zip(LETTERS, drawn.steps, strict=False):
            if self._slips("skipped_step", rng, faults):
                continue
            if self._slips("wrong_digit", rng, faults):
                step = (step[0], rng.randrange(10))
            result = self._result(value, step, rng, faults)
            written.append(worked_step(letter, value, step, result))
            value = result
        return Demonstration(
            question=drawn.question,
            turns=((worked_text(written, value), ""),),
            answer=str(drawn.value),
            faults=tuple(faults),
        )

    def words(self) -> list[str]:
        return list(WORDS)

    def _result(self, value: int, step: Step, rng: random.Random, faults: list[str]) -> int:
        right = applied(value, step)
        if step == ("-", 7) and self._slips("habit", rng, faults):
            return (right + 1) % 10
        if self._slips("wrong_result", rng, faults):
            return rng.randrange(10)
        return right

    def _slips(self, fault: str, rng: random.Random, faults: list[str]) -> bool:
        slipped = rng.random() < getattr(self, fault)
        if slipped:
            faults.append(fault)
        return slipped
