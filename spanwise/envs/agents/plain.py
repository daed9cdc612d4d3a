"""An environment from a plain class: its methods are the tools.

The convention is that of TRL's ``environment_factory``: ``reset(**row)``, public methods with
type hints and a docstring, and ``get_reward()``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

from spanwise.envs.agents.tool_chat import ToolChat
from spanwise.envs.agents.tools import AgentTool, Function, tool_of
from spanwise.envs.base import Split, Task
from spanwise.envs.question_files import raw_rows
from spanwise.errors import SpanwiseError

NO_TOOLS = ("reset", "get_reward", "rows", "close")
"""Public methods that the model cannot call."""

PROMPT_COLUMNS = ("prompt", "question")


@dataclass(frozen=True, kw_only=True)
class PlainEnvironment(ToolChat[Any]):
    """Objects of a plain class, one for each trajectory; made by ``environment_of``.

    The class has

    - ``reset(**row)``: begin with a row of data; what it returns, if it is text, is put after
      the row's prompt. It gets the columns that it names, and ``seed`` if it names that;
    - public methods with type hints and a docstring with ``Args:``, which are the tools. Calls
      of one turn are made in order. What they raise is a failure of the tool, not of the model:
      return what the model is to read;
    - ``get_reward()``, or ``get_reward(answer)`` with the model's last words, None if there are
      none: asked once, at the end;
    - ``rows(split)``, if there are no files: a list of rows for ``train``, ``dev`` and ``test``;
    - ``close()``, if it holds what must be freed.

    A row has ``prompt`` or ``question``: text, or a chat. Objects are forked by deep copy, or
    by replay where they cannot be copied: what they draw must come from ``seed``.
    """

    game: ClassVar[type]
    calls_at_once: ClassVar[bool] = False

    train_file: Path | None = None
    """File of rows to train on: one JSON object a line (.jsonl), or .parquet."""

    dev_file: Path | None = None
    """File of development rows, to choose settings by."""

    test_file: Path | None = None
    """File of test rows, to report."""

    deadline_s: float = 30.0
    """Seconds that a call of a tool may take."""

    @cached_property
    def _tasks(self) -> dict[Split, tuple[Task, ...]]:
        files: dict[Split, Path | None] = {
            "train": self.train_file, "dev": self.dev_file, "test": self.test_file
        }  # fmt: skip
        own: Callable[[Split], Sequence[object]] | None = getattr(self.game, "rows", None)
        found: dict[Split, tuple[Task, ...]] = {}
        for split, file in files.items():
            if file is not None:
                found[split] = tuple(_task(split, *row) for row in raw_rows(file))
            elif own is not None:
                found[split] = tuple(
                    _task(split, number, row) for number, row in enumerate(own(split), start=1)
                )
        return found

    def tasks(self, split: Split) -> Sequence[Task]:
        """The rows of the split's file, or those of the class."""
        if split not in self._tasks:
            raise SpanwiseError(
                f"no {split} rows: set {split}_file, or give {self.game.__name__} a static "
                "method rows(split)"
            )
        return self._tasks[split]

    def opening(self, task: Task) -> list[dict[str, str]]:
        """The row's prompt, and what ``reset`` says to it."""
        prompt = task.info["row"][_prompt_column(task.info["row"])]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [dict(message) for message in messages]
        game = self.game()
        said = self._reset(game, task, 0)
        self.end(game)
        if isinstance(said, str) and said:
            messages[-1]["content"] += "\n" * bool(messages[-1]["content"]) + said
        return messages

    def begin(self, task: Task, seed: int) -> Any:
        """A new object of the class, reset."""
        game = self.game()
        self._reset(game, task, seed)
        return game

    def end(self, inner: Any) -> None:
        if (close := getattr(inner, "close", None)) is not None:
            close()

    def tools(self, inner: Any | None) -> Sequence[AgentTool]:
        """The methods of the object; those of the class, to be described."""
        bound = self.game if inner is None else inner
        return [
            Function(getattr(bound, name), tool.schema, self.deadline_s)
            for name, tool in self._described.items()
        ]

    def score(self, inner: Any, task: Task, answer: str | None) -> float | Awaitable[float]:
        """The object's ``get_reward``."""
        takes_answer = len(inspect.signature(inner.get_reward).parameters) > 0
        return inner.get_reward(answer) if takes_answer else inner.get_reward()

    @cached_property
    def _described(self) -> dict[str, Function]:
        game = self.game()
        names = [name for name, method in inspect.getmembers(self.game, callable)
                 if not name.startswith("_") and name not in NO_TOOLS]  # fmt: skip
        return {name: tool_of(getattr(game, name)) for name in names}

    def _reset(self, game: Any, task: Task, seed: int) -> object:
        given = {"seed": seed, **cast("Mapping[str, Any]", task.info["row"])}
        parameters = inspect.signature(game.reset).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            given = {p.name: given[p.name] for p in parameters if p.name in given}
        return game.reset(**given)


def environment_of(game: type) -> type[PlainEnvironment]:
    """The environment whose trajectories are objects of a plain class.

    Raises:
      SpanwiseError: if the class lacks a method that is needed.

    Example:
      >>> class Till:
      ...     '''Count money.'''
      ...     @staticmethod
      ...     def rows(split):
      ...         return [{"prompt": "Put 5 into the till.", "wanted": 5}]
      ...     def reset(self, wanted):
      ...         self.wanted, self.sum = wanted, 0
      ...     def add(self, amount: int) -> str:
      ...         '''Put money into the till.
      ...
      ...         Args:
      ...             amount: How much.
      ...         '''
      ...         self.sum += amount
      ...         return f"{self.sum} in the till"
      ...     def get_reward(self):
      ...         return float(self.sum == self.wanted)
      >>> environment_of(Till)().tasks("train")[0].question
      'Put 5 into the till.'
    """
    for name in ("reset", "get_reward"):
        if not callable(getattr(game, name, None)):
            raise SpanwiseError(f"{game.__name__} needs a method {name}() to be an environment")
    fields: dict[str, Any] = {"game": game, "__doc__": game.__doc__, "__module__": game.__module__}
    made = type(game.__name__, (PlainEnvironment,), fields)
    return dataclass(frozen=True, kw_only=True)(made)


def _prompt_column(row: Mapping[str, Any]) -> str:
    return next(name for name in PROMPT_COLUMNS if row.get(name))


def _task(split: Split, number: int, row: Any) -> Task:
    where = f"{split} row {number}"
    if not isinstance(row, dict):
        raise SpanwiseError(f"{where}: must be an object with columns, is {type(row).__name__}")
    fields = cast("dict[str, Any]", row)
    if not any(fields.get(name) for name in PROMPT_COLUMNS):
        raise SpanwiseError(
            f"{where}: none of the columns {', '.join(PROMPT_COLUMNS)}; there are "
            f"{', '.join(map(str, fields))}"
        )
    prompt = fields[_prompt_column(fields)]
    question = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return Task(id=f"{split}-{number}", question=question, info={"row": fields})
