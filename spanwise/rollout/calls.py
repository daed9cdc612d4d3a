"""Calls to the engine and the environment: a deadline, a check of what comes back, a policy."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from spanwise.envs.base import Reply, Task, Turn
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.failures import RunStopped
from spanwise.runtime.waits import Call, waiting
from spanwise.samplers.base import Completion, Request
from spanwise.tools.base import ToolError
from spanwise.tools.output import MAX_CHARACTERS, shortened_text, shown_text
from spanwise.tree import Failure, FailureKind, Path

T = TypeVar("T")


class CallRunner:
    """Makes the calls of one node, and keeps what went wrong and was got over.

    Args:
      context: Engine, environment and policy.
      task: The prompt.
      step: Of the run.
      path: Of the node.
    """

    def __init__(self, context: RolloutContext, task: Task, step: int, path: Path) -> None:
        self._site, self._task, self._step, self._path = context, task, step, path
        self.faults: list[Failure] = []

    async def completion(self, request: Request) -> Completion | Failure:
        """A turn of the model, or why there is none."""
        return await self._tried(lambda attempt: self._sample(request, attempt), _itself)

    async def reply(self, turns: Sequence[Turn]) -> Reply:
        """The environment's answer; a failure of a tool is told to the model, if it may be."""
        reply = await self._tried(lambda attempt: self._ask(turns, attempt), _failure_of)
        failure = reply.failure
        if failure is None or failure.kind not in self._site.failures.show:
            return reply
        self.faults.append(replace(failure, then="shown"))
        return Reply(
            stop="continue",
            observation=self._site.env.failure_text(failure),
            label=reply.label,
            outcome={**reply.outcome, "failure": failure.kind},
        )

    async def _tried(
        self, call: Callable[[int], Awaitable[T]], failure_of: Callable[[T], Failure | None]
    ) -> T:
        policy = self._site.failures
        attempt = 0
        while (failure := failure_of(outcome := await call(attempt))) is not None:
            if failure.kind not in policy.retry or attempt == policy.retries:
                if failure.kind in policy.stop_at:
                    raise RunStopped(
                        f"{failure.kind} at task {self._task.id}, node "
                        f"{'.'.join(map(str, self._path))}: {failure.message}"
                    )
                return outcome
            self.faults.append(replace(failure, then="retried"))
            await asyncio.sleep(policy.pause_s(attempt))
            attempt += 1
        return outcome

    async def _sample(self, request: Request, attempt: int) -> Completion | Failure:
        deadline_s = self._site.failures.engine_deadline_s
        with waiting(self._call("engine", attempt)):
            try:
                sampled = _not_exiting(self._site.sampler.sample(request))
                completion = await with_deadline(sampled, deadline_s)
                fault = _fault_of(completion, request)
            except DeadlineExceeded as error:
                return failed("engine_timeout", error)
            except Exception as error:
                return failed("engine_error", error)
        return completion if fault is None else Failure(kind="engine_error", message=fault)

    async def _ask(self, turns: Sequence[Turn], attempt: int) -> Reply:
        deadline_s = self._site.failures.reply_deadline_s
        with waiting(self._call("environment", attempt)):
            try:
                replied = _not_exiting(self._site.env.reply(self._task, turns))
                reply = await with_deadline(replied, deadline_s)
            except ToolError as error:
                return _ended(error.failure())
            except DeadlineExceeded as error:
                return _ended(failed("reward_timeout", error))
            except Exception as error:
                return _ended(failed("reward_error", error))
        return self._checked(reply)

    def _checked(self, reply: object) -> Reply:
        """The reply, or a failure in its place if it cannot be trained on."""
        if not isinstance(reply, Reply):
            kind = type(reply).__name__
            return _ended(Failure(kind="reward_error", message=f"the reply is {kind}, not a Reply"))
        try:
            words = {"label": reply.label, **reply.outcome}
            json.dumps(words, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the outcome cannot be written as JSON: {error}"
            return _ended(Failure(kind="reward_error", message=message))
        reward: Any = reply.reward
        if reward is not None and not isinstance(reward, int | float):
            message = f"the reward is {type(reward).__name__}, not a number"
            return _ended(Failure(kind="reward_error", message=message), reply)
        if reward is not None and not _is_finite(reward):
            what = str(reward) if isinstance(reward, float) else "a number too large"
            return _ended(Failure(kind="reward_nan", message=f"the reward is {what}"), reply)
        return self._with_fit_observation(reply)

    def _with_fit_observation(self, reply: Reply) -> Reply:
        observation: Any = reply.observation
        if not isinstance(observation, str):
            message = f"the observation is {type(observation).__name__}, not text"
            return _ended(Failure(kind="tool_error", message=message), reply)
        if len(observation) > MAX_CHARACTERS:
            message = f"{len(observation)} characters were cut to {MAX_CHARACTERS}"
            self.faults.append(Failure(kind="overlong_output", message=message, then="cut"))
        text = shown_text(shortened_text(observation))
        if reply.stop == "continue" and not text:
            message = "the observation holds control characters alone"
            return _ended(Failure(kind="tool_error", message=message), reply)
        return reply if text == observation else replace(reply, observation=text)

    def _call(self, kind: Any, attempt: int) -> Call:
        return Call(
            kind=kind,
            step=self._step,
            task_id=self._task.id,
            path=self._path,
            attempt=attempt,
        )


async def _not_exiting(awaitable: Awaitable[T]) -> T:
    """The awaitable's result; whoever is called has no say over the run's end."""
    try:
        return await awaitable
    except SystemExit as error:
        raise RuntimeError(repr(error)) from error


def _fault_of(completion: object, request: Request) -> str | None:
    """What of an engine's answer cannot be trained on."""
    if not isinstance(completion, Completion):
        return f"the engine returned {type(completion).__name__}, not a Completion"
    tokens: Sequence[object] = completion.tokens
    if not 1 <= len(tokens) <= request.max_tokens:
        return f"the engine returned {len(tokens)} tokens, not 1 to {request.max_tokens}"
    if not all(type(token) is int and token >= 0 for token in tokens):
        return "the engine returned what is no token id"
    for logprobs in (completion.engine_logprobs, completion.sampling_logprobs):
        if len(logprobs) != len(tokens):
            return f"the engine returned {len(logprobs)} log-probs of {len(tokens)} tokens"
        if not all(map(math.isfinite, logprobs)):
            return "a log-prob of the turn is not finite"
    return None


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int that no float can hold
        return False


class DeadlineExceeded(TimeoutError):
    """There was no result before the deadline."""


async def with_deadline(awaitable: Awaitable[T], deadline_s: float) -> T:
    """The result of something awaitable, if it comes before the deadline.

    At the deadline it is cancelled and left behind: unlike ``asyncio.wait_for``, this does
    not wait for a coroutine that ignores its cancellation. Code that blocks the event loop
    is beyond its reach.

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
        task.add_done_callback(_forgotten)
        task.cancel()
        raise DeadlineExceeded(f"no result in {deadline_s:g} s")
    if task.cancelled():
        raise RuntimeError("the call cancelled itself")
    return task.result()


def _forgotten(task: asyncio.Future[Any]) -> None:
    """Take note of how a task left behind ended, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()


def _itself(outcome: Completion | Failure) -> Failure | None:
    return outcome if isinstance(outcome, Failure) else None


def _failure_of(reply: Reply) -> Failure | None:
    return reply.failure


def _ended(failure: Failure, reply: Reply | None = None) -> Reply:
    outcome = {} if reply is None else reply.outcome
    return Reply(stop="failure", failure=failure, outcome=outcome)


def failed(kind: FailureKind, error: Exception) -> Failure:
    """A failure of this kind, with what was raised on one line."""
    message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return Failure(kind=kind, message=message)
