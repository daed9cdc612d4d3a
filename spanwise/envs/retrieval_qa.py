"""Open questions from your own files, answered with the help of a retrieval server.

The setting of the search experiments in AT²PO: HotpotQA, NQ and their like, Wikipedia
behind an HTTP retriever, at most six calls, exact match.

References:
  Zong et al., `AT²PO <https://arxiv.org/abs/2601.04767>`_, 2026.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from spanwise.envs.base import Split, Task, Tokenizer
from spanwise.envs.search import SearchEnvironment
from spanwise.envs.turn_formats import ToolCallTurns, TurnFormat, XMLTurns
from spanwise.tools.search import RetrieverClient

QUESTION_COLUMN = "question"
ANSWER_COLUMNS = ("answers", "golden_answers", "answer")
"""The first of these that a row has holds its answers: a string, or a list of strings."""

INSTRUCTIONS = r"""Find the answer to the question below. You can look things up before you answer.

Write each turn as a thought and then one action, and nothing else.

To look something up:
<think> what you know, and what is missing </think> <search> a short query </search>

The passages that were found come back between <result> and </result>; never write these
yourself. Look things up as often as needed, at most {max_calls} times.

To finish:
<think> why the answer is right </think> <answer> \boxed{a name, date, number or yes/no} </answer>

Put the bare answer in the box, without a sentence around it."""

TOOL_CALL_INSTRUCTIONS = r"""Find the answer to the question below. Look things up with the
search tool, one call at a time and at most {max_calls} times, before you answer.

To finish, write the bare answer, a name, date, number or yes/no, as \boxed{answer}, once."""


@dataclass(frozen=True, kw_only=True)
class RetrievalQA(SearchEnvironment):
    """Questions from .jsonl files and a retriever reached by HTTP.

    A row is a JSON object with ``question`` and one of ``answers``, ``golden_answers`` or
    ``answer``. All files are read by ``check``, before a run loads its model, or by
    ``tasks``; what is missing or wrong in them raises a ``ValueError`` that names the
    file, the row and the column.
    """

    train_file: Path | None = None
    """Questions to train on, one JSON object a line."""

    dev_file: Path | None = None
    """Questions to choose settings by."""

    test_file: Path | None = None
    """Questions to report."""

    retriever_url: str = "http://127.0.0.1:8000/retrieve"
    """Where queries are posted; see ``tools.search.RetrieverClient``."""

    num_documents: int = 3
    """Documents in a result."""

    deadline_s: float = 30.0
    """Of a search, in seconds."""

    turns: Literal["xml", "tool_call"] = "xml"
    """How the model writes its turns: in tags of our own, which any model can be told, or
    in the tool-call format of Hermes and Qwen, through the tokenizer's chat template."""

    instructions: str = ""
    """Put before the question; ``{max_calls}`` in it becomes the number. By default those of
    ``turns``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_documents < 1 or self.deadline_s <= 0:
            raise ValueError(
                f"num_documents and deadline_s must be positive, got {self.num_documents} "
                f"and {self.deadline_s}"
            )
        _ = self.search_tool  # refuses a bad address

    @property
    def turn_format(self) -> TurnFormat:
        """That of ``turns``."""
        return XMLTurns() if self.turns == "xml" else ToolCallTurns()

    @property
    def search_tool(self) -> RetrieverClient:
        """The retriever at ``retriever_url``."""
        return self._tool

    @cached_property
    def _tool(self) -> RetrieverClient:
        return RetrieverClient(
            url=self.retriever_url, num_documents=self.num_documents, deadline_s=self.deadline_s
        )

    @cached_property
    def _tasks(self) -> dict[Split, tuple[Task, ...]]:
        files: dict[Split, Path | None] = {
            "train": self.train_file, "dev": self.dev_file, "test": self.test_file
        }  # fmt: skip
        return {split: _tasks_in(file, split) for split, file in files.items() if file is not None}

    def tasks(self, split: Split) -> Sequence[Task]:
        """The rows of the split's file, in its order."""
        if split not in self._tasks:
            raise ValueError(
                f"no {split} questions: set {split}_file to a .jsonl file with the columns "
                f"{QUESTION_COLUMN} and {' or '.join(ANSWER_COLUMNS)}"
            )
        return self._tasks[split]

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse missing or wrong training questions, and a tokenizer that changes a tag."""
        self.tasks("train")
        super().check(tokenizer)

    def messages(self, task: Task) -> list[dict[str, str]]:
        """One user message: the instructions, with ``max_calls`` put in, and the question."""
        default = INSTRUCTIONS if self.turns == "xml" else TOOL_CALL_INSTRUCTIONS
        instructions = (self.instructions or default).replace("{max_calls}", str(self.max_calls))
        content = f"{instructions}\n\nQuestion: {task.question}"
        return [{"role": "user", "content": content}]


def _tasks_in(file: Path, split: Split) -> tuple[Task, ...]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{split}_file {file} cannot be read: {error}") from error
    tasks = tuple(
        _task(f"{split}-{number}", line, f"{file}, row {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not tasks:
        raise ValueError(f"{split}_file {file} has no rows")
    return tasks


def _task(task_id: str, line: str, where: str) -> Task:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object, is {type(row).__name__}")
    fields = cast(dict[str, Any], row)
    question = fields.get(QUESTION_COLUMN)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: column {QUESTION_COLUMN!r} must hold a question")
    column = next((c for c in ANSWER_COLUMNS if c in fields), None)
    if column is None:
        raise ValueError(
            f"{where}: has none of the columns {', '.join(ANSWER_COLUMNS)}; it has "
            f"{', '.join(fields)}"
        )
    value: Any = fields[column]
    answers = cast(list[Any], value if isinstance(value, list) else [value])
    if not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError(f"{where}: column {column!r} must hold a string or a list of strings")
    return Task(id=task_id, question=question.strip(), answers=tuple(answers))
