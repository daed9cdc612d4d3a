"""Tools, rewards and engines that fail on purpose, the same way in every run."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from spanwise.envs.base import Environment, Reply, Split, Task, Turn
from spanwise.models.tokenizer import Tokenizer
from spanwise.rollout.calls import current_call
from spanwise.samplers.base import Completion, Engine, EngineError, Request, Sampler
from spanwise.tools.base import Tool, ToolCrash, ToolError
from spanwise.tree import Failure

Fault = Literal["raise", "hang", "nan", "crash", "bytes", "huge", "control"]
"""A fault of a call.

``raise`` and ``hang`` fit everything; ``nan`` is a reward, or the log-probs of a turn; a
tool may also ``crash``, or return ``bytes``, a ``huge`` text of 10 MB, or ``control``
characters and nothing else.
"""

HUGE_CHARACTERS = 10_000_000

_counting = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """Which calls fail, and how. Whether one does follows from the seed and the call alone.

    Inside a rollout a call is identified by its kind, step, task, node and attempt, so that a
    run has the same faults whatever the order in which its calls are answered; outside, by
    what was asked.

    Raises:
      ValueError: if the rates are no probabilities, or sum to more than 1.

    Example:
      >>> plan = FaultPlan(rates={"raise": 0.5})
      >>> [plan.fault(f"query {n}") for n in range(4)]
      [None, 'raise', 'raise', 'raise']
      >>> plan.struck
      Counter({'raise': 3})
    """

    rates: Mapping[Fault, float]
    """Share of the calls that each kind of fault strikes."""

    seed: int = 0
    """Seed of the draws that decide which calls fail."""

    steps: tuple[int, int] | None = None
    """First and last step in which calls fail; None: all. Held-out questions are answered in
    step 0."""

    attempts: int | None = None
    """Number of attempts at a call that may fail; None: all."""

    struck: Counter[Fault] = field(default_factory=Counter["Fault"], init=False, compare=False)
    """Number of faults so far, by kind."""

    def __post_init__(self) -> None:
        if min(self.rates.values(), default=0) < 0 or sum(self.rates.values()) > 1 + 1e-9:
            raise ValueError(f"rates must be at least 0 and sum to at most 1, got {self.rates}")

    def fault(self, asked: object) -> Fault | None:
        """The fault of a call, which is then counted, or None.

        Args:
          asked: What tells calls apart outside a rollout.
        """
        call = current_call()
        if call is not None:
            asked = (call.kind, call.step, call.task_id, call.path, call.attempt)
            if self.steps is not None and not self.steps[0] <= call.step <= self.steps[1]:
                return None
            if self.attempts is not None and call.attempt >= self.attempts:
                return None
        drawn = random.Random(f"{self.seed} {asked!r}").random()
        for fault, rate in self.rates.items():
            if drawn < rate:
                with _counting:
                    self.struck[fault] += 1
                return fault
            drawn -= rate
        return None

    def check(self, user: str, *known: Fault) -> None:
        """Refuse a plan with faults other than ``known``."""
        if other := sorted(self.rates.keys() - set(known)):
            raise ValueError(f"{user} has no fault {other[0]!r}; it has {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class FaultyTool(Tool):
    """Another tool, with faults.

    Raises:
      ValueError: if the plan holds ``nan``: a tool gives no number.
    """

    tool: Tool
    plan: FaultPlan
    hang_s: float = 600.0
    """Seconds for which a call that hangs blocks its thread."""

    def __post_init__(self) -> None:
        known: tuple[Fault, ...] = ("raise", "hang", "crash", "bytes", "huge", "control")
        self.plan.check("FaultyTool", *known)

    @property
    def deadline_s(self) -> float:  # type: ignore[override]
        return self.tool.deadline_s

    def call(self, query: str) -> Any:
        match self.plan.fault(query):
            case "raise":
                raise ToolError("a planned fault")
            case "crash":
                raise ToolCrash("a planned fault")
            case "hang":
                threading.Event().wait(timeout=self.hang_s)
                return None
            case "bytes":
                return b"\x00\xff"
            case "huge":
                return "x" * HUGE_CHARACTERS
            case "control":
                return "\x1b[2J\x07\x00"
            case _:
                return self.tool.call(query)


@dataclass(frozen=True, kw_only=True)
class FaultyReward(Environment):
    """Another environment whose rewards fail: only a reply with a reward is struck.

    Raises:
      ValueError: if the plan holds a fault that a reward cannot have.
    """

    env: Environment
    plan: FaultPlan

    def __post_init__(self) -> None:
        self.plan.check("FaultyReward", "raise", "hang", "nan")

    @cached_property
    def stop_strings(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.env.stop_strings

    @cached_property
    def own_tags(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.env.own_tags

    def tasks(self, split: Split) -> Sequence[Task]:
        return self.env.tasks(split)

    def messages(self, task: Task) -> list[dict[str, str]]:
        return self.env.messages(task)

    def prompt(self, task: Task, tokenizer: Any) -> str:
        return self.env.prompt(task, tokenizer)

    def rendered(self, observation: str, tokenizer: Any) -> str:
        return self.env.rendered(observation, tokenizer)

    async def release(self, task: Task) -> None:
        await self.env.release(task)

    def failure_text(self, failure: Failure) -> str:
        return self.env.failure_text(failure)

    def check(self, tokenizer: Tokenizer) -> None:
        self.env.check(tokenizer)

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        reply = await self.env.reply(task, turns)
        if reply.reward is None:
            return reply
        match self.plan.fault((task.id, [turn.text for turn in turns])):
            case None:
                return reply
            case "nan":
                return replace(reply, reward=float("nan"))
            case "hang":
                await asyncio.Event().wait()
                return reply
            case _:
                raise RuntimeError("a planned fault")


class FaultySampler(Sampler):
    """Another engine, with faults.

    An engine that dies in step 20 and is back at the third attempt at each turn is the plan
    ``FaultPlan(rates={"raise": 1.0}, steps=(20, 20), attempts=2)``.

    Raises:
      ValueError: if the plan holds a fault that an engine cannot have.
    """

    def __init__(self, sampler: Sampler, plan: FaultPlan) -> None:
        plan.check("FaultySampler", "raise", "hang", "nan")
        self._sampler, self._plan = sampler, plan

    async def sample(self, request: Request) -> Completion:
        fault = self._plan.fault((request.prompt, request.seed))
        if fault == "raise":
            raise EngineError("a planned fault")
        if fault == "hang":
            await asyncio.Event().wait()
        completion = await self._sampler.sample(request)
        if fault is None:
            return completion
        blank = (float("nan"),) * len(completion.tokens)
        return replace(completion, engine_logprobs=blank, sampling_logprobs=blank)

    def update_weights(self, model: Any) -> None:
        self._sampler.update_weights(model)

    def pause(self) -> None:
        self._sampler.pause()

    def close(self) -> None:
        self._sampler.close()


@dataclass(frozen=True, kw_only=True)
class FaultyEngine(Engine):
    """The settings of a ``FaultySampler``, for a configuration."""

    engine: Engine
    plan: FaultPlan

    def check(self) -> None:
        self.engine.check()

    def build(self, model: Any, tokenizer: Any) -> FaultySampler:
        return FaultySampler(self.engine.build(model, tokenizer), self.plan)
