"""Worked chains of sums, with slips and the habit of giving up, to fit a base model on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from spanwise.envs.chain import (
    LETTERS,
    OPEN,
    WORDS,
    Sum,
    applied,
    check_lengths,
    open_steps,
    worked_step,
    worked_text,
)
from spanwise.toys.demonstration import Demonstration, DemonstrationSource


@dataclass(frozen=True, kw_only=True)
class ChainDemonstrations(DemonstrationSource):
    """How chains are worked, and how often each fault is made, at each step.

    After a slip the work goes on from the wrong result. Giving up is the habit of long chains:
    to work a chain of twelve to its end, six temptations have to be withstood.

    Example:
      >>> right = ChainDemonstrations(min_numbers=3, max_numbers=3).right()
      >>> demonstration = right.draw(random.Random(16))
      >>> demonstration.question
      '3 a - 7 b - 6 ='
      >>> demonstration.turns[0][0]
      'a 3 - 7 = 6 ; b 6 - 6 = 0 # 0 .'
    """

    FAULTS: ClassVar[tuple[str, ...]] = ("wrong_result", "skipped_step", "wrong_digit", "gives_up")

    min_numbers: int = 3
    """Numbers in the shortest sum."""

    max_numbers: int = 12
    """Numbers in the longest sum."""

    wrong_result: float = 0.01
    """Probability of a random digit for the result of a step."""

    skipped_step: float = 0.01
    """Probability of leaving a step out."""

    wrong_digit: float = 0.005
    """Probability of copying a random digit in place of the question's."""

    gives_up: float = 0.7
    """Probability, ``long_way`` from the end, of leaving all further steps and the answer open."""

    long_way: int = 6
    """Number of steps still to work, this one included, from which giving up tempts."""

    def __post_init__(self) -> None:
        check_lengths(self.min_numbers, self.max_numbers)
        super().__post_init__()

    def draw(self, rng: random.Random) -> Demonstration:
        drawn = Sum.draw(rng, self.min_numbers, self.max_numbers)
        faults: list[str] = []
        written: list[str] = []
        value, num_steps = drawn.first, len(drawn.steps)
        answer: int | str | None = None
        for done, (letter, step) in enumerate(zip(LETTERS, drawn.steps, strict=False)):
            if num_steps - done >= self.long_way and self.slips("gives_up", rng, faults):
                written.append(open_steps(LETTERS[done:num_steps]))
                answer = OPEN
                break
            if self.slips("skipped_step", rng, faults):
                continue
            if self.slips("wrong_digit", rng, faults):
                step = (step[0], rng.randrange(10))
            wrong = self.slips("wrong_result", rng, faults)
            result = rng.randrange(10) if wrong else applied(value, step)
            written.append(worked_step(letter, value, step, result))
            value = result
        return Demonstration(
            question=drawn.question,
            turns=((worked_text(written, value if answer is None else answer), ""),),
            answer=str(drawn.value),
            faults=tuple(faults),
        )

    def words(self) -> list[str]:
        return list(WORDS)
