"""What a task family offers: prompts, and an answer to each turn of the model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, cast, get_args

from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer
from spanwise.tree import Failure, Stop

Split = Literal["train", "dev", "test"]

MAX_REWARD = 1e18
"""Largest reward in size: single precision holds the squares of some hundred such."""

REPLY_STOPS = tuple(stop for stop in get_args(Stop) if stop != "prompt")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question."""

    id: str
    """Name of the task, unique over all splits; draws are seeded by it."""

    question: str
    """Question or task in words for a person."""

    answers: tuple[str, ...] = ()
    """Right answers; empty where there is none to compare with."""

    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further facts about the task, by which held-out scores can be grouped."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of the model as the environment sees it."""

    text: str
    truncated: bool = False
    """The token limit cut it, or leaves no token for a turn after it."""

    observation: str = ""
    """Observation that followed, as the model was shown it; empty for the newest turn."""

    outcome: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Outcome in the environment's reply; empty for the newest turn."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The environment's answer to a turn."""

    stop: Stop
    """``continue``: the trajectory goes on after ``observation``; else it ends here."""

    observation: str = ""
    reward: float | None = None
    """Paid for this turn, whether the trajectory goes on (None: nothing) or ends here. Needed
    where it ends, unless ``failure`` says why there is none: then all that was paid on the way
    is left out of training too. A turn that would go on but leaves no room for another is
    asked about again with ``truncated``, and is paid what that reply says. Any number up to
    ``MAX_REWARD`` in size, of numpy's or a tensor without dimensions too; kept as a float."""

    success: bool | None = None
    """Whether the trajectory that ends here succeeded; None: there is no such thing."""

    failure: Failure | None = None
    label: str = ""
    """One short line that stands for the turn in tables and pages; empty: its text."""

    outcome: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is worth keeping of the turn, as plain JSON values. Each number (True counts 1)
    becomes a metric by its name."""

    def __post_init__(self) -> None:
        if self.stop not in REPLY_STOPS:
            raise SpanwiseError(
                f"a reply's stop is one of {', '.join(REPLY_STOPS)}, not {self.stop}"
            )
        for name in ("reward", "success"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        failure, outcome = cast("tuple[object, object]", (self.failure, self.outcome))
        if not isinstance(failure, Failure | None) or not isinstance(outcome, Mapping):
            raise SpanwiseError("a reply's failure must be a Failure, and its outcome a mapping")
        success, label = cast("tuple[object, object]", (self.success, self.label))
        if not isinstance(success, bool | None) or not isinstance(label, str):
            raise SpanwiseError("a reply's success must be True, False or None, and its label text")
        if isinstance(outcome, dict):
            values = cast("dict[str, object]", outcome)
            object.__setattr__(self, "outcome", {k: _plain(v) for k, v in values.items()})
        if self.reward is not None:
            object.__setattr__(self, "reward", _real(self.reward))
        if self.success is not None and self.stop in ("continue", "failure"):
            raise SpanwiseError(f"a reply that ends can have success, not one of {self.stop}")
        if self.stop == "continue" and not self.observation:
            raise SpanwiseError("a reply that goes on needs an observation")
        if self.stop != "continue" and (self.reward is None) == (self.failure is None):
            raise SpanwiseError("a reply that ends needs a reward, or a failure that says why not")


def _plain(value: object) -> object:
    """A scalar of numpy, or an array or tensor without dimensions, as Python's own number."""
    scalar = getattr(value, "ndim", None) == 0
    return cast(Any, value).item() if scalar else value


def _real(reward: object) -> float:
    if not isinstance(reward, Real | Decimal):
        raise SpanwiseError(f"a reply's reward must be a number, not {type(reward).__name__}")
    try:
        return float(reward)
    except OverflowError:
        return math.inf if cast(Any, reward) > 0 else -math.inf


class Environment(ABC):
    """A family of tasks. Holds no trajectory: a search may fork at any turn.

    A game that does hold a state is a ``StatefulEnvironment``, which sees to that.

    Subclasses are frozen keyword-only dataclasses whose fields are the options.
    """

    stop_strings: tuple[str, ...] = ()
    """The sampler ends a turn at any of these."""

    own_tags: tuple[str, ...] = ()
    """Added tokens of the tokenizer, such as ``<think>``, that are one token where messages and
    observations hold them. All others are plain text there: whoever wrote a question or what a
    tool found can end no message and open no call. Take these out of text that is not yours."""

    @abstractmethod
    def tasks(self, split: Split) -> Sequence[Task]:
        """The tasks of a split, always the same ones in the same order."""

    @abstractmethod
    def messages(self, task: Task) -> list[dict[str, str]]:
        """The chat that opens the trajectory, for the tokenizer's chat template."""

    @abstractmethod
    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """Answer the newest turn, ``turns[-1]``. A function of its arguments alone.

        What it raises is a failure of the rollout's, a ``ToolError`` one of the tool: see
        ``rollout.failures.FailurePolicy``.
        """

    async def release(self, task: Task) -> None:
        """The tree of a task is complete, or given up: free what is held for it."""

    def failure_text(self, failure: Failure) -> str:
        """The observation that tells the model that its tool call failed."""
        return f"\n[{failure.kind.replace('_', ' ')}: there is no result]\n"

    def prompt(self, task: Task, tokenizer: Any) -> str:
        """The text that opens the trajectory: ``messages`` through the chat template."""
        return tokenizer.apply_chat_template(
            self.messages(task), add_generation_prompt=True, tokenize=False
        )

    def rendered(self, observation: str, tokenizer: Any) -> str:
        """The text that follows a turn with this observation; the observation itself."""
        return observation

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that cannot write what this environment needs.

        Raises:
          ValueError: one line that names what is missing.
        """
