r"""Questions with known answers from your own files or a data set, scored as mathematics.

Local ``.jsonl`` and ``.parquet`` files, or a name on the Hugging Face hub. The columns of
DAPO-Math-17k, MATH and GSM8K are found by themselves; others can be named.

References:
  Yu et al., `DAPO <https://arxiv.org/abs/2503.14476>`_, 2025 (DAPO-Math-17k).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from spanwise.envs.base import Environment, Reply, Split, Task, Turn
from spanwise.envs.math.answer_forms import AnswerForm, asked_forms, stated_answer
from spanwise.envs.math.scoring import (
    INSTALL_HINT,
    is_sentence,
    math_verdict,
    math_verify_is_installed,
    may_be_right,
    reference_answer,
)
from spanwise.envs.math.scoring_process import ScoringError, scored_or_none
from spanwise.envs.question_files import Columns, Row, dataset_rows, file_rows
from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer

WARM_UP = "10", (r"\frac{x}{2}", "-98765.43210", "x+1=2", r"\sqrt{2}\pi", "(1,2]")
"""A comparison that has the package read what answers are made of, once and for all scores."""

INSTRUCTIONS = r"Reason step by step, and put the final answer in \boxed{}."


@dataclass(frozen=True, kw_only=True)
class Questions(Environment):
    r"""Questions answered in one turn; 1 for a right final answer, 0 for anything else.

    The answer is what the last ``\boxed{...}`` of the turn holds, compared by
    ``math-verify``. Where the row itself says in which form to answer, as those of
    DAPO-Math-17k do (a last line ``Answer: ...``), it is not told otherwise, and an answer in
    that form counts as well, the last of all: see ``answer_forms``.
    A turn without one, or with one that cannot be read as mathematics,
    is malformed and scores 0; so does one cut by the token limit, and one whose comparison
    raises, dies or misses its deadline where that of the reference with itself does not. Where
    that does too, the trajectory ends without a reward.

    All rows are read by ``check``, before a run loads its model, or by ``tasks``. A
    question that was there before is left out, so that no question is both trained on and
    held out. A split without a file of its own takes rows from the end of the training
    questions: the last ``num_held_out`` are the test split, those before them dev.

    Raises:
      ValueError: if an option is out of range; by ``check`` and ``tasks`` also for what is
        missing or wrong in a file, with its name, the row and the column.
    """

    train_file: Path | None = None
    """File of training questions: one JSON object a line (.jsonl), or .parquet."""

    dataset: str = ""
    """Data set on the Hugging Face hub, OWNER/NAME, in place of a train_file."""

    dataset_split: str = "train"
    """Split of the data set to train on."""

    dev_file: Path | None = None
    """File of development questions, to choose settings by."""

    test_file: Path | None = None
    """File of test questions, to report."""

    num_held_out: int = 200
    """Number of training questions held out for each of test and dev that has no file."""

    question_column: str = ""
    """Column of the question, a string or a list of chat messages; by default ``question``,
    ``prompt`` or ``problem``."""

    answer_column: str = ""
    """Column of the answer, with dots for what is nested; by default ``answer``, ``answers``,
    ``solution`` or ``reward_model.ground_truth``. A worked solution's final answer counts."""

    instructions: str = INSTRUCTIONS
    """Text put after the question, or after the last message; the default is left out where the
    row itself says in which form to answer."""

    deadline_s: float = 5.0
    """Deadline of a comparison of answers, in seconds."""

    def __post_init__(self) -> None:
        if self.train_file is not None and self.dataset:
            raise SpanwiseError("set train_file or dataset, not both")
        if self.num_held_out < 0 or self.deadline_s <= 0:
            raise SpanwiseError(
                "num_held_out must be 0 or more and deadline_s positive, got "
                f"{self.num_held_out} and {self.deadline_s}"
            )

    @cached_property
    def _tasks(self) -> dict[Split, tuple[Task, ...]]:
        columns = Columns()
        if self.question_column:
            columns = replace(columns, question=(self.question_column,))
        if self.answer_column:
            columns = replace(columns, answer=(self.answer_column,))
        files: dict[Split, Path | None] = {"test": self.test_file, "dev": self.dev_file}
        if self.dataset:
            rows = dataset_rows(self.dataset, self.dataset_split, columns)
        elif self.train_file is not None:
            rows = file_rows(self.train_file, columns)
        else:
            raise SpanwiseError(
                "no train questions: set train_file, to .jsonl or .parquet, or dataset"
            )
        source = self.dataset or self.train_file
        splits: dict[Split, tuple[Task, ...]] = {}
        seen: set[str] = set()
        for split, file in files.items():
            if file is not None:
                own = _new(file_rows(file, columns), seen)
                splits[split] = _tasks_of(split, own, file)
        train = _new(rows, seen)
        for split, file in files.items():
            if file is None and self.num_held_out:
                cut = len(train) - self.num_held_out
                if cut < 1:
                    raise SpanwiseError(
                        f"{self.dataset or self.train_file} has too few different questions to "
                        f"hold out {self.num_held_out} for {split}; lower num_held_out or set "
                        f"{split}_file"
                    )
                splits[split] = _tasks_of(split, train[cut:], source)
                train = train[:cut]
        if not train:
            raise SpanwiseError(f"all questions of {self.dataset or self.train_file} are held out")
        return {"train": _tasks_of("train", train, source), **splits}

    def tasks(self, split: Split) -> Sequence[Task]:
        """The different questions of a split, in the order of their rows."""
        if split not in self._tasks:
            raise SpanwiseError(f"no {split} questions: set {split}_file, or num_held_out above 0")
        return self._tasks[split]

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse missing or wrong questions, and a missing ``math-verify``."""
        if not math_verify_is_installed():
            raise SpanwiseError(f"answers are compared by math-verify: {INSTALL_HINT}")
        self.tasks("train")

    def messages(self, task: Task) -> list[dict[str, str]]:
        """The question's messages, the instructions behind the last."""
        earlier = [dict(message) for message in task.info.get("earlier_messages", ())]
        row = [*earlier, {"role": "user", "content": task.question}]
        told = self.instructions == INSTRUCTIONS and _asked(row)
        if self.instructions and not told:
            row[-1]["content"] = f"{task.question}\n\n{self.instructions}"
        return row

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """Score the one turn there is."""
        turn = turns[-1]
        if turn.truncated:
            return Reply(stop="length", reward=0.0, success=False)
        answer = stated_answer(turn.text, _asked(self.messages(task)))
        if answer is None:
            return Reply(stop="malformed", reward=0.0, success=False)
        try:
            verdict = await scored_or_none(
                math_verdict,
                answer,
                task.answers,
                sound=(task.answers[0], task.answers),
                preload=(math_verdict, *WARM_UP),
                deadline_s=self.deadline_s,
            )
        except ScoringError as error:
            return Reply(stop="failure", failure=error.failure(), label=f"answer {answer}")
        right, stop = bool(verdict), "malformed" if verdict is None else "end"
        return Reply(stop=stop, reward=float(right), success=right, label=f"answer {answer}")


def _asked(messages: Sequence[Mapping[str, str]]) -> tuple[AnswerForm, ...]:
    return asked_forms("\n".join(message["content"] for message in messages))


def _new(rows: Sequence[Row], seen: set[str]) -> list[Row]:
    """Rows whose question is not among those seen, which they join."""
    new: list[Row] = []
    for row in rows:
        if row.question not in seen:
            seen.add(row.question)
            new.append(row)
    return new


def _tasks_of(split: Split, rows: Sequence[Row], source: object) -> tuple[Task, ...]:
    """The rows of a split; says how many answers are sentences.

    Raises:
      ValueError: for a row whose answer cannot be right, with its number.
    """
    tasks: list[Task] = []
    sentences: list[Task] = []
    for row in rows:
        answers = tuple(reference_answer(answer) for answer in row.answers)
        if unreadable := [answer for answer in answers if not may_be_right(answer)]:
            raise SpanwiseError(
                f"{source}, row {row.number}: no answer can be compared with "
                f"{unreadable[0][:80]!r}, the answer that it gives"
            )
        info = {"earlier_messages": row.earlier_messages} if row.earlier_messages else {}
        task_id = f"{split}-{row.number}"
        tasks.append(Task(id=task_id, question=row.question, answers=answers, info=info))
        if all(map(is_sentence, answers)):
            sentences.append(tasks[-1])
    if sentences:
        warnings.warn(
            f"{source}: {len(sentences)} of {len(rows)} {split} answers are sentences, which "
            f"mathematics cannot compare, the first that of {sentences[0].id}: "
            f"{sentences[0].answers[0][:80]!r}; leave such rows out",
            RuntimeWarning,
            stacklevel=2,
        )
    return tuple(tasks)
