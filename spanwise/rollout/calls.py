"""Calls to the engine and to the environment: their deadlines, and what becomes of failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from spanwise.envs.base import MAX_REWARD, Reply, Task, Turn
from spanwise.errors import SpanwiseError
from spanwise.rollout.context import RolloutContext
from spanwise.runtime.waits import waiting
from spanwise.samplers.base import Completion, EngineError, Request
from spanwise.tools.base import ToolError
from spanwise.tools.output import MAX_CHARACTERS, shortened_text, shown_text
from spanwise.tree import Failure, Path

T = TypeVar("T")
Outcome = TypeVar("Outcome", Completion | Failure, Reply)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call to the engine or to the environment, and what it is for."""

    kind: Literal["engine", "environment"]
    step: int
    """Training step."""

    task_id: str
    path: Path
    """The node that the call is made for."""

    attempt: int = 0
    """Number of the attempt, from 0."""

    def __str__(self) -> str:
        node = ".".join(map(str, self.path))
        again = f", attempt {self.attempt + 1}" if self.attempt else ""
        return f"the {self.kind}, step {self.step}, task {self.task_id}, node {node}{again}"


_current: ContextVar[Call | None] = ContextVar("current call", default=None)


def current_call() -> Call | None:
    """The call on whose behalf this code runs, also in the thread of a tool; None outside one."""
    return _current.get()


class CallRunner:
    """Makes the calls of one node, and keeps the failures that the node got over."""

    def __init__(self, context: RolloutContext, task: Task, step: int, path: Path) -> None:
        self._context, self._task, self._step, self._path = context, task, step, path
        self.faults: list[Failure] = []

    async def completion(self, request: Request) -> Completion | Failure:
        """A turn of the model, or why there is none."""
        return await self._retried(lambda attempt: self._sample(request, attempt))

    async def reply(self, turns: Sequence[Turn]) -> Reply:
        """The environment's answer; where the policy allows, the model is told of a failure."""
        reply = await self._retried(lambda attempt: self._ask(turns, attempt))
        failure = reply.failure
        if failure is None or failure.kind not in self._context.failures.show:
            return reply
        self.faults.append(replace(failure, then="shown"))
        return Reply(
            stop="continue",
            observation=self._context.env.failure_text(failure),
            label=reply.label,
            outcome={**reply.outcome, "failure": failure.kind},
        )

    async def _retried(self, call: Callable[[int], Awaitable[Outcome]]) -> Outcome:
        policy = self._context.failures
        attempt = 0
        while True:
            outcome = await call(attempt)
            failure = outcome.failure if isinstance(outcome, Reply) else outcome
            if (
                not isinstance(failure, Failure)
                or failure.kind not in policy.retry
                or attempt == policy.retries
            ):
                return outcome
            self.faults.append(replace(failure, then="retried"))
            await asyncio.sleep(policy.backoff_s * 2**attempt)
            attempt += 1

    async def _sample(self, request: Request, attempt: int) -> Completion | Failure:
        deadline_s = self._context.failures.engine_deadline_s
        with self._calling("engine", attempt):
            try:
                completion = await with_deadline(self._context.sampler.sample(request), deadline_s)
                check_completion(completion, request)
            except DeadlineExceeded as error:
                return self._context.failed("engine_timeout", error)
            except Exception as error:
                return self._context.failed("engine_error", error)
        return completion

    async def _ask(self, turns: Sequence[Turn], attempt: int) -> Reply:
        deadline_s = self._context.failures.reply_deadline_s
        with self._calling("environment", attempt):
            try:
                replied = self._context.env.reply(self._task, turns)
                return self._checked(await with_deadline(replied, deadline_s))
            except DeadlineExceeded as error:
                failure = self._context.failed("reward_timeout", error)
            except Exception as error:
                failure = self._context.failed("reward_error", error)
        return Reply(stop="failure", failure=failure)

    def _checked(self, reply: Reply) -> Reply:
        """The reply with an observation fit for the model; a failure if its reward is no number.

        Raises:
          Exception: if the reply cannot be trained on for another reason.
        """
        if not isinstance(reply, Reply):
            raise TypeError(f"the environment's reply is {type(reply).__name__}, not a Reply")
        try:
            json.dumps(reply.outcome, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SpanwiseError(f"the outcome cannot be written as JSON: {error}") from error
        if reply.reward is not None and not abs(reply.reward) <= MAX_REWARD:
            message = (
                f"the reward of {type(self._context.env).__name__} is {reply.reward}, no number "
                f"from {-MAX_REWARD:g} to {MAX_REWARD:g}"
            )
            failure = Failure(kind="reward_nan", message=message)
            return Reply(stop="failure", failure=failure, outcome=reply.outcome)
        if not isinstance(reply.observation, str):
            raise ToolError(f"the observation is {type(reply.observation).__name__}, not text")
        if len(reply.observation) > MAX_CHARACTERS:
            message = f"{len(reply.observation)} characters were cut to {MAX_CHARACTERS}"
            self.faults.append(Failure(kind="overlong_output", message=message, then="cut"))
        text = shown_text(shortened_text(reply.observation))
        if reply.stop == "continue" and not text:
            raise ToolError("the observation holds nothing but control characters")
        return replace(reply, observation=text)

    @contextlib.contextmanager
    def _calling(self, kind: Any, attempt: int) -> Iterator[None]:
        call = Call(
            kind=kind, step=self._step, task_id=self._task.id, path=self._path, attempt=attempt
        )
        token = _current.set(call)
        try:
            with waiting(call):
                yield
        finally:
            _current.reset(token)


def check_completion(completion: Completion, request: Request) -> None:
    """Refuse a completion that cannot be trained on, by an ``EngineError``."""
    number = len(completion.tokens)
    if not 1 <= number <= request.max_tokens:
        raise EngineError(f"the engine returned {number} tokens, not 1 to {request.max_tokens}")
    for logprobs in (completion.engine_logprobs, completion.sampling_logprobs):
        if len(logprobs) != number or not all(map(math.isfinite, logprobs)):
            raise EngineError(f"the engine did not return {number} finite log-probs")


class DeadlineExceeded(TimeoutError):
    """There was no result before the deadline."""


async def with_deadline(awaitable: Awaitable[T], deadline_s: float) -> T:
    """The result of an awaitable, if it comes before the deadline.

    At the deadline it is cancelled and abandoned: unlike ``asyncio.wait_for``, this does not
    wait for a coroutine that ignores its cancellation. Code that blocks the event loop is
    beyond its reach.

    Raises:
      DeadlineExceeded: at the deadline.
      RuntimeError: if the awaitable cancelled itself.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=deadline_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.add_done_callback(_retrieve_exception)
        task.cancel()
        raise DeadlineExceeded(f"no result in {deadline_s:g} s")
    if task.cancelled():
        raise RuntimeError("the call cancelled itself")
    return task.result()


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Keep asyncio from reporting how an abandoned task ended."""
    if not task.cancelled():
        task.exception()
