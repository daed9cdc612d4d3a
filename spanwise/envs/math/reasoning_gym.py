"""Any of the hundred-odd generated tasks of ``reasoning-gym``, scored by its own scorer.

References:
  Stojanovski et al., `Reasoning Gym <https://arxiv.org/abs/2505.24760>`_, 2025.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import pickle
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, cast

from spanwise.envs.base import Environment, Reply, Split, Task, Turn
from spanwise.envs.math.answer_grammar import (
    EXPRESSIONS,
    LITERALS,
    OWN_TEXT,
    evaluator,
    is_readable,
    read_literals_only,
)
from spanwise.envs.math.scoring import INSTALL_HINT, last_boxed_answer, tagged_answer
from spanwise.envs.math.scoring_process import ScoringError, generated, scored_or_none
from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer

INSTRUCTIONS = (
    "Think it through, then give the final answer, and nothing but the answer, between "
    "<answer> and </answer>."
)

NONSENSE = "@@ no answer @@"
"""Answer that no scorer should pay for."""


@dataclass(frozen=True, kw_only=True)
class ReasoningGym(Environment):
    r"""Questions that the package generates, answered in one turn.

    The answer is what the last ``<answer>...</answer>`` of the turn holds or, without one,
    the last ``\boxed{...}``. The reward is the scorer's number, which for some tasks gives
    partial credit; it is a success where it is 1. A turn without an answer, or cut by
    the token limit, scores 0, and so does one that the scorer cannot read. A scorer that
    fails in another way or misses its deadline ends the trajectory without a reward. A task
    is refused if its scorer pays in full for nonsense, as that of ``game_of_life_halting``.

    The splits are ranges of one generated sequence: first the test questions, then dev,
    then train, so that another number of training questions leaves the held-out ones as
    they are. Training questions that are also held out, as happens where a task has few
    different questions, are left out. All are generated at once: a few tasks, such as
    ``knight_swap``, need a second a question. They are generated in a process with a fixed
    hash seed: some tasks, such as ``list_functions``, iterate over sets of strings.

    Raises:
      ValueError: if an option is out of range; by ``check`` and ``tasks`` also for an
        unknown task or parameter, or if the package is not installed.
    """

    task: str = "chain_sum"
    """Name of a task of the package, such as ``chain_sum``, ``countdown`` or ``knights_knaves``."""

    parameters: str = "{}"
    """Parameters of the generator, a JSON object such as ``{"min_terms": 4, "max_terms": 8}``."""

    train_questions: int = 2000
    """Number of questions to train on."""

    dev_questions: int = 200
    """Number of development questions."""

    test_questions: int = 400
    """Number of test questions."""

    seed: int = 0
    """Seed of the generated questions."""

    instructions: str = INSTRUCTIONS
    """Text put after the question."""

    deadline_s: float = 10.0
    """Deadline of a score, in seconds."""

    def __post_init__(self) -> None:
        if min(self.train_questions, self.dev_questions, self.test_questions) < 1:
            raise SpanwiseError(
                "there must be at least one question in each split, got "
                f"{self.train_questions}, {self.dev_questions} and {self.test_questions}"
            )
        if self.deadline_s <= 0:
            raise SpanwiseError(f"deadline_s must be positive, got {self.deadline_s}")
        _ = self._parameters  # refuses what is not a JSON object

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        try:
            parameters: Any = json.loads(self.parameters)
        except ValueError as error:
            raise SpanwiseError(f"parameters {self.parameters!r} is not JSON: {error}") from error
        if not isinstance(parameters, dict):
            raise SpanwiseError(f"parameters must be a JSON object, got {self.parameters!r}")
        if taken := {"seed", "size"} & parameters.keys():
            raise SpanwiseError(
                f"parameters must not hold {' or '.join(sorted(taken))}: set seed, "
                "train_questions, dev_questions and test_questions instead"
            )
        return cast(dict[str, Any], parameters)

    @cached_property
    def _made(self) -> tuple[dict[Split, tuple[Task, ...]], dict[str, str]]:
        """Tasks of each split, and by their ids the package's own records, pickled."""
        counts: dict[Split, int] = {
            "test": self.test_questions, "dev": self.dev_questions, "train": self.train_questions
        }  # fmt: skip
        options = {**self._parameters, "seed": self.seed, "size": sum(counts.values())}
        questions = _generated(self.task, options)
        splits: dict[Split, tuple[Task, ...]] = {}
        entries: dict[str, str] = {}
        held_out, start = set[str](), 0
        for split, count in counts.items():
            tasks: list[Task] = []
            for index in range(start, start + count):
                question, answer, entry = questions[index]
                if split == "train" and question in held_out:
                    continue
                task_id = f"{split}-{index - start}"
                # some tasks have no answer: their scorer checks what was asked for
                answers = () if answer is None else (answer,)
                tasks.append(Task(id=task_id, question=question, answers=answers))
                entries[task_id] = entry
            splits[split] = tuple(tasks)
            held_out |= {task.question for task in tasks}
            start += count
        if not splits["train"]:
            raise SpanwiseError(
                f"{self.task} has no training question that is not held out; lower "
                "dev_questions and test_questions, or give it parameters that allow more"
            )
        return splits, entries

    def tasks(self, split: Split) -> Sequence[Task]:
        """The questions of a split, generated when they are first needed."""
        return self._made[0][split]

    def messages(self, task: Task) -> list[dict[str, str]]:
        """One user message: the question, and the instructions, if any."""
        content = f"{task.question}\n\n{self.instructions}" if self.instructions else task.question
        return [{"role": "user", "content": content}]

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """Score the one turn there is."""
        turn = turns[-1]
        if turn.truncated:
            return Reply(stop="length", reward=0.0, success=False)
        answer = tagged_answer(turn.text) or last_boxed_answer(turn.text)
        if answer is None:
            return Reply(stop="malformed", reward=0.0, success=False)
        label = f"answer {answer}"
        reference = task.answers[0] if task.answers else NONSENSE
        broken = Reply(stop="malformed", reward=0.0, success=False, label=label)
        if not is_readable(self.task, answer, reference):
            return broken
        entry = self._made[1][task.id]
        try:
            reward = await scored_or_none(
                _score, self.task, self.parameters, answer, entry,
                sound=(self.task, self.parameters, reference, entry),
                preload=(_scorer, self.task, self.parameters), deadline_s=self.deadline_s,
            )  # fmt: skip
        except ScoringError as error:
            return Reply(stop="failure", failure=error.failure(), label=label)
        if reward is None:
            return broken
        right = reward == 1.0
        return Reply(stop="end", reward=reward, success=right, label=label)

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse an unknown task, or parameters it does not take, before a model is loaded."""
        self.tasks("train")


_Question = tuple[str, str | None, str]
"""Question, answer if there is one, record."""


def _generated(name: str, options: dict[str, Any]) -> list[_Question]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise SpanwiseError(
            f"this environment needs reasoning-gym, which is not installed: {INSTALL_HINT}"
        )
    try:
        return generated(_questions, name, options, preload=(_loaded,))
    except ScoringError as error:
        raise SpanwiseError(str(error).removeprefix("ValueError: ")) from error


def _loaded() -> None:
    import reasoning_gym  # noqa: F401  # pyright: ignore[reportUnusedImport]


def _questions(name: str, options: dict[str, Any]) -> list[_Question]:
    """All questions of a dataset; called in a scoring process."""
    dataset = _dataset(name, options)
    questions: list[_Question] = []
    for index in range(options["size"]):
        entry = dataset[index]
        answer = None if entry["answer"] is None else str(entry["answer"])
        questions.append((entry["question"], answer, b64encode(pickle.dumps(entry)).decode()))
    nonsense = 0.0
    with contextlib.suppress(Exception):  # a scorer may refuse it in any way
        nonsense = dataset.score_answer(NONSENSE, dataset[0])
    if nonsense == 1.0:
        raise SpanwiseError(
            f"the scorer of {name} pays in full for {NONSENSE!r}; take another task"
        )
    return questions


def _dataset(name: str, options: dict[str, Any]) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
        meant = f"; did you mean {' or '.join(near)}?" if near else f", of {len(DATASETS)} tasks"
        raise SpanwiseError(f"reasoning-gym has no task {name!r}{meant}")
    known = [option.name for option in fields(DATASETS[name][1])]
    if unknown := [option for option in options if option not in known]:
        raise SpanwiseError(f"{name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    scorer = DATASETS[name][0]
    if name in LITERALS:
        read_literals_only(scorer)
    elif name not in EXPRESSIONS.keys() | OWN_TEXT and (call := evaluator(scorer)):
        raise SpanwiseError(
            f"the scorer of {name} may evaluate an answer as a program ({call}) and is not one "
            "of those that are known; take another task"
        )
    try:
        return reasoning_gym.create_dataset(name, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise SpanwiseError(f"{name} refuses its parameters {options}: {error}") from error


def _score(name: str, parameters: str, answer: str, entry: str) -> float:
    """Called in a scoring process."""
    try:
        reward = float(
            _scorer(name, parameters).score_answer(answer, pickle.loads(b64decode(entry)))
        )
    except ValueError:  # ``prime_factorization``, for one, reads its answer with int()
        return 0.0
    if not 0.0 <= reward <= 1.0:
        raise ArithmeticError(f"the score is {reward}, not between 0 and 1")
    return reward


@cache
def _scorer(name: str, parameters: str) -> Any:
    return _dataset(name, json.loads(parameters))
