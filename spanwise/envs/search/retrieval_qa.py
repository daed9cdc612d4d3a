"""Open questions from your own files, answered with the help of a retrieval server.

The setting of the search experiments in AT²PO: HotpotQA, NQ and their like, Wikipedia
behind an HTTP retriever, at most six calls, exact match.

References:
  Zong et al., `AT²PO <https://arxiv.org/abs/2601.04767>`_, 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from spanwise.envs.base import Split, Task
from spanwise.envs.question_files import Columns, file_rows
from spanwise.envs.search.environment import SearchEnvironment
from spanwise.envs.search.exact_match import normalised_answer
from spanwise.envs.search.turn_formats import TOOL_CALL_TURNS, XML_TURNS, TurnFormat
from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer
from spanwise.tools.search import RetrieverClient

COLUMNS = Columns(question=("question",), answer=("answers", "golden_answers", "answer"))

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
    """Questions from .jsonl or .parquet files and a retriever reached by HTTP.

    A row has ``question`` and one of ``answers``, ``golden_answers`` or ``answer``: one answer
    or a list of them; one of which nothing is left without punctuation and articles is left
    out, and so is a training question that is also in the dev or test file. All files
    are read by ``check``, before a run loads its model, or by
    ``tasks``; what is missing or wrong in them raises a ``ValueError`` that names the
    file, the row and the column.
    """

    train_file: Path | None = None
    """File of training questions: one JSON object a line (.jsonl), or .parquet."""

    dev_file: Path | None = None
    """File of development questions, to choose settings by."""

    test_file: Path | None = None
    """File of test questions, to report."""

    retriever_url: str = "http://127.0.0.1:8000/retrieve"
    """Address that queries are posted to; see ``tools.search.RetrieverClient``."""

    num_documents: int = 3
    """Number of documents in a result."""

    deadline_s: float = 30.0
    """Deadline of a search, in seconds."""

    turns: Literal["xml", "tool_call"] = "xml"
    """Format of the model's turns: tags of our own, which any model can be told, or the
    tool-call format of Hermes and Qwen, through the tokenizer's chat template."""

    instructions: str = ""
    """Text put before the question; ``{max_calls}`` in it becomes the number. Empty: the
    default of ``turns``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_documents < 1 or self.deadline_s <= 0:
            raise SpanwiseError(
                f"num_documents and deadline_s must be positive, got {self.num_documents} "
                f"and {self.deadline_s}"
            )
        _ = self.search_tool  # refuses a bad address

    @property
    def turn_format(self) -> TurnFormat:
        """The format that ``turns`` names."""
        return XML_TURNS if self.turns == "xml" else TOOL_CALL_TURNS

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
        tasks: dict[Split, tuple[Task, ...]] = {
            split: _tasks_in(file, split) for split, file in files.items() if file is not None
        }
        if "train" in tasks:
            held_out = (*tasks.get("dev", ()), *tasks.get("test", ()))
            kept_back = {_words(task) for task in held_out}
            train = tuple(task for task in tasks["train"] if _words(task) not in kept_back)
            if not train:
                raise SpanwiseError(
                    f"{self.train_file}: every question is also in the dev or test file; "
                    "train on other questions"
                )
            tasks["train"] = train
        return tasks

    def tasks(self, split: Split) -> Sequence[Task]:
        """The rows of the split's file, in its order."""
        if split not in self._tasks:
            raise SpanwiseError(
                f"no {split} questions: set {split}_file to a .jsonl or .parquet file with the "
                f"columns {COLUMNS.question[0]} and {' or '.join(COLUMNS.answer)}"
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
        content = f"{instructions}\n\nQuestion: {self.asked(task)}"
        return [{"role": "user", "content": content}]


def _words(task: Task) -> str:
    return " ".join(task.question.split())


def _tasks_in(file: Path, split: Split) -> tuple[Task, ...]:
    rows = file_rows(file, COLUMNS)
    for row in rows:
        if row.earlier_messages:
            raise SpanwiseError(f"{file}, row {row.number}: the question must be text, not a chat")
    tasks: list[Task] = []
    for row in rows:
        answers = tuple(answer for answer in row.answers if normalised_answer(answer))
        if not answers:
            raise SpanwiseError(
                f"{file}, row {row.number}: nothing is left of the answer {row.answers[0]!r} "
                "without its punctuation and articles"
            )
        tasks.append(Task(id=f"{split}-{row.number}", question=row.question, answers=answers))
    return tuple(tasks)
