"""Chains of sums: one turn of worked steps, in which a single slip spoils the answer.

    question   3 a + 4 b - 8 =
    worked     a 3 + 4 = 7 ; b 7 - 8 = 9 # 9 .
    given up   a 3 + 4 = 7 ; b - # - .

All numbers are one digit, sums and differences are taken modulo 10. Each step of the
question has a letter, so that a small model can find its place. The reward is paid
for the last digit alone, so that it falls to the credit to find
the step that went wrong. A step that a model gets wrong now and then is a step of low
probability: the segments of SAE (arXiv 2601.07320) mean something here. How long a
question is, and whether its work was given up, foretell much of the outcome: there is
something for a critic to learn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from spanwise.envs.base import Environment, Reply, Split, Task, Turn
from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"

OPEN = "-"
"""In place of the work of a step, or of the answer."""

WORDS: tuple[str, ...] = (*"0123456789", *LETTERS, "+", "-", "=", ";", "#", ".")

_ANSWER = re.compile(r"[^#]*# ([0-9]) \.")

Step = tuple[str, int]
"""An operator and the digit it applies."""


@dataclass(frozen=True)
class Sum:
    """A first digit and what is added or taken away, in order."""

    first: int
    steps: tuple[Step, ...]

    @property
    def question(self) -> str:
        """Space-separated, one word a token.

        Example:
          >>> Sum(3, (("+", 4), ("-", 8))).question
          '3 a + 4 b - 8 ='
        """
        steps = zip(LETTERS, self.steps, strict=False)
        return " ".join([str(self.first), *(f"{a} {op} {digit}" for a, (op, digit) in steps), "="])

    @property
    def value(self) -> int:
        """The result modulo 10.

        Example:
          >>> Sum(3, (("+", 4), ("-", 8))).value
          9
        """
        value = self.first
        for step in self.steps:
            value = applied(value, step)
        return value

    @staticmethod
    def draw(rng: random.Random, min_numbers: int, max_numbers: int) -> Sum:
        """A random sum of some length."""
        count = rng.randint(min_numbers, max_numbers)
        steps = tuple((rng.choice("+-"), rng.randrange(10)) for _ in range(count - 1))
        return Sum(rng.randrange(10), steps)


def applied(value: int, step: Step) -> int:
    """One step, modulo 10."""
    operator, digit = step
    return (value + digit if operator == "+" else value - digit) % 10


def worked_step(letter: str, value: int, step: Step, result: int) -> str:
    """How a step is written; ``result`` need not be right.

    Example:
      >>> worked_step("b", 7, ("-", 8), 9)
      'b 7 - 8 = 9'
    """
    return f"{letter} {value} {step[0]} {step[1]} = {result}"


def open_steps(letters: str) -> str:
    """Steps that are named and not worked.

    Example:
      >>> open_steps("bcd")
      'b - c - d -'
    """
    return " ".join(f"{letter} {OPEN}" for letter in letters)


def worked_text(steps: Sequence[str], answer: int | str) -> str:
    """A whole turn; with ``OPEN`` for an answer it has none.

    Example:
      >>> worked_text(["a 3 + 4 = 7", "b 7 - 8 = 9"], 9)
      'a 3 + 4 = 7 ; b 7 - 8 = 9 # 9 .'
      >>> worked_text(["a 3 + 4 = 7", open_steps("b")], OPEN)
      'a 3 + 4 = 7 ; b - # - .'
    """
    return f"{' ; '.join(steps)} # {answer} ."


def check_lengths(min_numbers: int, max_numbers: int) -> None:
    """Refuse lengths for which there are no steps or no letters."""
    if not 2 <= min_numbers <= max_numbers <= len(LETTERS) + 1:
        raise SpanwiseError(
            f"a chain needs 2 <= min_numbers <= max_numbers <= {len(LETTERS) + 1}, got "
            f"{min_numbers} and {max_numbers}"
        )


@dataclass(frozen=True, kw_only=True)
class ChainSums(Environment):
    """Work out a chain of sums; 1 for the right last digit, 0 for anything else.

    A turn that does not end in ``# d .`` is malformed and scores 0. ``info["length"]`` is
    the number of numbers. The three splits share no question.

    Raises:
      ValueError: if an option is out of range.

    Example:
      >>> ChainSums(min_numbers=3, max_numbers=3, train_questions=500).tasks("test")[0].info
      {'length': 3}
    """

    min_numbers: int = 3
    """Numbers in the shortest sum."""

    max_numbers: int = 12
    """Numbers in the longest sum."""

    train_questions: int = 5000
    """Number of questions to train on."""

    dev_questions: int = 500
    """Number of development questions."""

    test_questions: int = 500
    """Number of test questions."""

    seed: int = 0
    """Seed of the generated questions."""

    stop_strings = (" .",)

    def __post_init__(self) -> None:
        check_lengths(self.min_numbers, self.max_numbers)
        space = sum(20**n for n in range(self.min_numbers, self.max_numbers + 1)) // 2
        wanted = self.train_questions + self.dev_questions + self.test_questions
        if min(self.train_questions, self.dev_questions, self.test_questions) < 1 or wanted > space:
            raise SpanwiseError(
                f"there must be at least one question in each split and at most {space} in all, "
                f"got {self.train_questions}, {self.dev_questions} and {self.test_questions}"
            )

    @cached_property
    def _tasks(self) -> dict[Split, tuple[Task, ...]]:
        rng = random.Random(f"chain sums {self.seed}")
        counts: dict[Split, int] = {
            "train": self.train_questions, "dev": self.dev_questions, "test": self.test_questions
        }  # fmt: skip
        seen: set[Sum] = set()
        splits: dict[Split, tuple[Task, ...]] = {}
        for split, count in counts.items():
            tasks: list[Task] = []
            while len(tasks) < count:
                drawn = Sum.draw(rng, self.min_numbers, self.max_numbers)
                if drawn not in seen:
                    seen.add(drawn)
                    task_id, answers = f"{split}-{len(tasks)}", (str(drawn.value),)
                    info = {"length": len(drawn.steps) + 1}
                    tasks.append(
                        Task(id=task_id, question=drawn.question, answers=answers, info=info)
                    )
            splits[split] = tuple(tasks)
        return splits

    def tasks(self, split: Split) -> Sequence[Task]:
        return self._tasks[split]

    def messages(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """Score the one turn there is."""
        if turns[-1].truncated:
            return Reply(stop="length", reward=0.0, success=False)
        match = _ANSWER.fullmatch(turns[-1].text)
        if match is None:
            return Reply(stop="malformed", reward=0.0, success=False)
        right = match.group(1) in task.answers
        return Reply(
            stop="end", reward=float(right), success=right, label=f"answer {match.group(1)}"
        )

    def check(self, tokenizer: Tokenizer) -> None:
        text = " ".join(WORDS)
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if back.split() != text.split():
            raise SpanwiseError(
                f"this tokenizer reads {text!r} back as {back!r}; chain sums need one that keeps "
                "digits and signs as they are"
            )
