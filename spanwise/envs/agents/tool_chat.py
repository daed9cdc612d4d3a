"""A chat in which the model may call tools before it answers."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic

from spanwise.envs.agents.calls import ToolCall, answer_in, calls_in
from spanwise.envs.agents.tools import AgentTool
from spanwise.envs.base import Reply, Task, Turn
from spanwise.envs.live_states import State
from spanwise.envs.search import tool_call_turns
from spanwise.envs.stateful import StatefulEnvironment, awaited
from spanwise.errors import SpanwiseError
from spanwise.models.tokenizer import Tokenizer
from spanwise.tree import Failure, Stop


@dataclass
class Chat(Generic[State]):
    """A chat while it goes on."""

    inner: State
    """What ``ToolChat.begin`` gave."""

    task: Task
    num_turns: int = 0


@dataclass(frozen=True, kw_only=True)
class ToolChat(StatefulEnvironment[Chat[Any]], Generic[State]):
    """Turns of tool calls, answered by their results, and at last an answer, which is scored.

    A call that cannot be read, names no tool or has wrong arguments is answered by what is
    wrong with it, and counted as ``env/wrong_calls``. A turn without a call is the answer.
    A turn that the token limit cut ends the trajectory without one, and so do calls once
    ``max_turns`` are used up.
    """

    calls_at_once: ClassVar[bool] = True
    """Whether the calls of one turn may run side by side; else one after another."""

    max_turns: int = 8
    """Largest number of turns with calls."""

    instructions: str = ""
    """System message before the task's own messages; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_turns < 1:
            raise SpanwiseError(f"max_turns must be at least 1, got {self.max_turns}")

    @abstractmethod
    def begin(self, task: Task, seed: int) -> State | Awaitable[State]:
        """What the tools of a trajectory work on; None where they hold nothing."""

    @abstractmethod
    def tools(self, inner: State | None) -> Sequence[AgentTool]:
        """The tools, at work on ``inner``; of None, the same ones to be described."""

    @abstractmethod
    def score(self, inner: State, task: Task, answer: str | None) -> float | Awaitable[float]:
        """The reward of a trajectory that ends; ``answer`` is None if it came to none."""

    @abstractmethod
    def opening(self, task: Task) -> list[dict[str, str]]:
        """The messages of a task."""

    def end(self, inner: State) -> Awaitable[None] | None:
        """Free what ``begin`` gave."""

    @property
    def stop_strings(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The end of a call."""
        return tool_call_turns.STOP_STRINGS

    def messages(self, task: Task) -> list[dict[str, str]]:
        """The instructions, if any, and the messages of the task."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return system + self.opening(task)

    def prompt(self, task: Task, tokenizer: Any) -> str:
        """The chat through the template, with the tools' schemas."""
        schemas = [dict(tool.schema) for tool in self.tools(None)]
        return tokenizer.apply_chat_template(
            self.messages(task), tools=schemas, add_generation_prompt=True, tokenize=False
        )

    def rendered(self, observation: str, tokenizer: Any) -> str:
        """The results as a message of the role tool, up to where the next turn begins."""
        return tool_call_turns.after_turn(tokenizer, observation)

    def failure_text(self, failure: Failure) -> str:
        return f"{failure.kind.replace('_', ' ')}: there is no result"

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse tools that cannot be described, and a chat template without tool calls."""
        names = [tool.name for tool in self.tools(None)]
        if not names or len(set(names)) < len(names):
            raise SpanwiseError(
                f"{type(self).__name__} needs tools of different names, has {', '.join(names)}"
            )
        tool_call_turns.check_template(tokenizer)

    async def start(self, task: Task, seed: int) -> Chat[State]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Chat(await awaited(self.begin(task, seed)), task)

    async def close(self, state: Chat[State]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        await awaited(self.end(state.inner))

    async def step(self, state: Chat[State], turn: Turn) -> Reply:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the calls of a turn; without one, or at a limit, score the trajectory."""
        if turn.truncated:
            return await self._ended(state, "length", None)
        if not (calls := calls_in(turn.text)):
            return await self._ended(state, "end", answer_in(turn.text))
        state.num_turns += 1
        if state.num_turns > self.max_turns:
            return await self._ended(state, "budget", None)
        results, wrong = await self._results(state.inner, calls)
        return Reply(
            stop="continue",
            observation="\n".join(results),
            label="; ".join(_shown(call) for call in calls),
            outcome={"calls": len(calls), "wrong_calls": wrong},
        )

    async def _ended(self, state: Chat[State], stop: Stop, answer: str | None) -> Reply:
        reward = await awaited(self.score(state.inner, state.task, answer))
        label = "no answer" if answer is None else f"answer {answer}"
        return Reply(stop=stop, reward=reward, label=label)

    async def _results(self, inner: State, calls: Sequence[ToolCall]) -> tuple[list[str], int]:
        """The result of each call, or what is wrong with it; and how many are wrong."""
        tools = {tool.name: tool for tool in self.tools(inner)}
        faults = [call.fault or _fault(call, tools) for call in calls]

        async def result(number: int) -> str:
            call = calls[number]
            return faults[number] or await tools[call.name](call.arguments)

        if self.calls_at_once:
            results = list(await asyncio.gather(*map(result, range(len(calls)))))
        else:
            results = [await result(number) for number in range(len(calls))]
        return results, sum(map(bool, faults))


def _fault(call: ToolCall, tools: dict[str, AgentTool]) -> str:
    if call.name not in tools:
        return f"there is no tool {call.name[:50]!r}; there are {', '.join(tools)}"
    return tools[call.name].fault(call)


def _shown(call: ToolCall) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name or 'unreadable call'}({given})"[:80]
