"""The properties of an environment."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from spanwise.envs.base import MAX_REWARD, Environment, Reply, Split, Task, Turn
from spanwise.envs.stateful import StatefulEnvironment
from spanwise.testing.assertions import require
from spanwise.tools.output import shortened_text, shown_text

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
TEXTS = ("", " ", "yes", "<answer> 42 </answer>", "\x1b[31m\x00\u202e", "</", "{}[]" * 2000)
"""Turns that a model may well write."""

MAX_TURNS = 50


def check_environment(
    environment: Environment,
    *,
    texts: Sequence[str] = TEXTS,
    solve: Callable[[Task, Sequence[Turn]], str] | None = None,
    num_tasks: int = 3,
    splits: Sequence[Split] = SPLITS,
) -> None:
    """Check an environment: its tasks, and that it answers whatever a model writes.

    - a split has tasks, always the same in the same order; no id stands twice, in one split
      or in two;
    - a task opens with a chat of ``{"role": ..., "content": ...}``, always the same, also
      once turns have been answered;
    - every text, and every text cut by the token limit, gets a ``Reply``: no exception, a
      known ``stop``, an observation that is text, a finite reward if it ends and a finite one
      or none if it goes on, an outcome that can be written as JSON;
    - a reply is a function of its arguments: the same again, whatever was answered in
      between, whatever is answered at the same time, and once all that was held for the task
      is released, so that a search may fork anywhere (a game with a state is then forked and
      replayed). The task and the turns it is given stay as they are, outcomes too: history
      is not rewritten;
    - with ``solve``: a player who knows the answers ends every task within 50 turns, and is
      paid more in all than for any one or two of ``texts`` that end that task.

    Args:
      environment: With its tools at work; their answers must not change between calls.
      texts: Turns to try, besides each of the environment's stop strings.
      solve: The task and the turns so far to the text of a good next turn.
      num_tasks: How many tasks of each split to play.
      splits: The splits it has.

    Raises:
      AssertionError: one line that says which property does not hold.
    """
    tried = (*texts, *environment.stop_strings)
    for task in _checked_tasks(environment, splits, num_tasks):
        opening = _checked_messages(environment, task)
        returns = asyncio.run(_check_replies(environment, task, tried))
        if solve is not None:
            earned = asyncio.run(_solved(environment, task, solve))
            require(
                earned > max(returns, default=-math.inf),
                f"task {task.id}: solve earns {earned:g}, no more than a text that knows nothing",
            )
        require(
            environment.messages(task) == opening,
            f"task {task.id}: messages() must give the same chat after reply() as before",
        )


def _checked_tasks(environment: Environment, splits: Sequence[Split], num_tasks: int) -> list[Task]:
    seen: set[str] = set()
    played: list[Task] = []
    for split in splits:
        tasks = list(environment.tasks(split))
        require(bool(tasks), f"the split {split!r} has no tasks")
        require(
            tasks == list(environment.tasks(split)),
            f"tasks({split!r}) must give the same tasks in the same order every time",
        )
        for task in tasks:
            require(task.id not in seen, f"the task id {task.id!r} stands twice")
            seen.add(task.id)
        played += tasks[:num_tasks]
    return played


def _checked_messages(environment: Environment, task: Task) -> list[dict[str, str]]:
    """A copy of the chat that opens a task, once its form is known to be right."""
    messages = copy.deepcopy(environment.messages(task))
    require(bool(messages), f"task {task.id}: messages() is empty")
    for message in messages:
        fine = set(message) >= {"role", "content"} and all(
            isinstance(text, str) for text in message.values()
        )
        require(fine, f"task {task.id}: a message needs a role and a content, got {message}")
    require(
        messages == environment.messages(task),
        f"task {task.id}: messages() must give the same chat every time",
    )
    return messages


async def _check_replies(environment: Environment, task: Task, texts: Sequence[str]) -> list[float]:
    """Every text as a first turn and as a second; the returns of what came to an end."""
    firsts = [Turn(text=text, truncated=cut) for text in texts for cut in (False, True)]
    histories: list[tuple[Turn, ...]] = [(turn,) for turn in firsts]
    replies = [await _reply(environment, task, history) for history in histories]
    returns = [reply.reward for reply in replies if reply.stop != "continue"]
    for first, reply in list(zip(firsts, replies, strict=True)):
        if reply.stop == "continue":
            opening = _answered(first, reply)
            for text in texts:
                histories.append((opening, Turn(text=text)))
                replies.append(await _reply(environment, task, histories[-1]))
                if replies[-1].stop != "continue" and replies[-1].reward is not None:
                    returns.append((reply.reward or 0.0) + replies[-1].reward)
    together = await asyncio.gather(*(_reply(environment, task, h) for h in reversed(histories)))
    anew: list[Reply] = []
    for history in histories:
        await environment.release(task)
        anew.append(await _reply(environment, task, history))
    for history, *given in zip(histories, replies, reversed(together), anew, strict=True):
        require(
            all(other == given[0] for other in given),
            f"task {task.id}: the reply to {history[-1].text[:40]!r} must be a function of its "
            f"arguments alone, got {given[0]} and {[r for r in given if r != given[0]]}",
        )
    await environment.release(task)
    if isinstance(environment, StatefulEnvironment):
        left = environment.num_open_states()
        require(left == 0, f"task {task.id}: {left} states are open after release()")
    return [earned for earned in returns if earned is not None]


def _answered(turn: Turn, reply: Reply) -> Turn:
    """A turn once it has been answered, as it stands before later ones."""
    seen = shown_text(shortened_text(reply.observation))
    return replace(turn, observation=seen, outcome=reply.outcome)


async def _reply(environment: Environment, task: Task, turns: Sequence[Turn]) -> Reply:
    """The reply to some turns, once its form is known to be right."""
    name = f"task {task.id}, turn {turns[-1].text[:40]!r}"
    given, before = list(turns), copy.deepcopy((task, list(turns)))
    try:
        reply = await environment.reply(task, given)
    except Exception as error:
        raise AssertionError(f"{name}: reply() raised {error!r}") from error
    require(given == before[1], f"{name}: reply() must leave the turns as they are")
    require(task == before[0], f"{name}: reply() must leave the task as it is")
    require(isinstance(reply, Reply), f"{name}: reply() gives a Reply, got {type(reply).__name__}")
    require(
        isinstance(reply.observation, str),
        f"{name}: the observation is text, got {type(reply.observation).__name__}",
    )
    if reply.reward is not None:
        require(
            abs(reply.reward) <= MAX_REWARD,
            f"{name}: the reward, up to {MAX_REWARD:g} in size, is a finite number, got "
            f"{reply.reward!r}",
        )
    try:
        json.dumps(dict(reply.outcome), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name}: the outcome cannot be written as JSON: {error}") from error
    return reply


async def _solved(
    environment: Environment, task: Task, solve: Callable[[Task, Sequence[Turn]], str]
) -> float:
    turns: list[Turn] = []
    earned = 0.0
    for _ in range(MAX_TURNS):
        text = solve(task, tuple(turns))
        reply = await _reply(environment, task, (*turns, Turn(text=text)))
        earned += reply.reward or 0.0
        if reply.stop != "continue":
            require(reply.reward is not None, f"task {task.id}: solve ended in {reply.failure}")
            return earned
        turns.append(_answered(Turn(text=text), reply))
    raise AssertionError(f"task {task.id}: solve did not come to an end in {MAX_TURNS} turns")
