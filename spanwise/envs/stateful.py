"""Games that hold a state, played by a search that may fork at any turn."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import isawaitable
from typing import ClassVar, Generic, Literal, TypeVar, cast

from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.envs.live_states import Key, LiveStates, LiveStatesByLoop, State
from spanwise.errors import SpanwiseError
from spanwise.runtime.seeds import seed_of
from spanwise.tools.base import ToolError
from spanwise.tools.output import shortened_text, shown_text

T = TypeVar("T")

ForkWay = Literal["copy", "snapshot", "replay"]
"""How a second trajectory comes to a state that the first has left behind."""


class ReplayDiverged(ToolError):
    """A game that was played again with the same seed and turns did not go as before."""

    kind = "replay_diverged"


class NoCopy(TypeError):
    """A state cannot be copied. What ``StatefulEnvironment.copy`` may raise."""


@dataclass(frozen=True, kw_only=True)
class StatefulEnvironment(Environment, Generic[State]):
    """A game with ``start`` and ``step``, which any rollout can play and any search can fork.

    ``reply`` stays a function of its arguments: the state after some turns is the one that
    they lead to from the task's seed. It is kept while it may be needed, so that a trajectory
    costs one step a turn. A search that forks comes to an earlier state in the first of the
    ``fork_ways`` that can be had:

    - ``copy``: states are copied before they are stepped, with ``copy``;
    - ``snapshot``: after each step the state is saved under a name, and restored from it;
    - ``replay``: the game is started again and the recorded turns are played again. Every
      observation must be the recorded one, byte for byte; a difference is the failure
      ``replay_diverged``, and the branch is left out. A run that was killed and resumed always
      goes this way, so ``replay`` need not be named: it is what is left.

    A turn whose step failed, and of which the model was told, did not happen: the next one
    is played in the state before it.

    ``start``, ``step``, ``copy``, ``snapshot``, ``restore``, ``discard`` and ``close`` may be
    plain methods or coroutines. Plain ones are run one at a time, so that a game which draws
    from a generator of the whole process may seed it and draw; slow ones should await.

    Example:
      >>> import asyncio
      >>> @dataclass(frozen=True, kw_only=True)
      ... class Countdown(StatefulEnvironment[list[int]]):
      ...     def tasks(self, split):
      ...         return [Task(id=f"{split}-0", question="count down", info={"from": 2})]
      ...     def messages(self, task):
      ...         return [{"role": "user", "content": task.question}]
      ...     def start(self, task, seed):
      ...         return [task.info["from"]]
      ...     def step(self, state, turn):
      ...         state[0] -= 1
      ...         done = state[0] == 0
      ...         return Reply(stop="end" if done else "continue", observation=f"{state[0]} left",
      ...                      reward=1.0 if done else 0.0)
      >>> game = Countdown()
      >>> first = Turn(text="go", observation="1 left")
      >>> async def play():
      ...     replies = [await game.reply(game.tasks("train")[0], turns)
      ...                for turns in ([Turn(text="go")], [first, Turn(text="go")])]
      ...     await game.release(game.tasks("train")[0])
      ...     return [(reply.stop, reply.reward) for reply in replies]
      >>> asyncio.run(play())
      [('continue', 0.0), ('end', 1.0)]
    """

    fork_ways: ClassVar[tuple[ForkWay, ...]] = ("copy", "replay")
    """How this game's states can be had again, the first choice first."""

    max_live_states: int = 256
    """Number of states kept at once, beside those in use; others are replayed when needed."""

    def __post_init__(self) -> None:
        if self.max_live_states < 0:
            raise SpanwiseError(f"max_live_states must be 0 or more, got {self.max_live_states}")

    @abstractmethod
    def start(self, task: Task, seed: int) -> State | Awaitable[State]:
        """A new game. The same task and seed give the same game; the seed is the task's own."""

    @abstractmethod
    def step(self, state: State, turn: Turn) -> Reply | Awaitable[Reply]:
        """Play a turn: change the state, and answer. What it draws comes from the seed."""

    def copy(self, state: State) -> State | Awaitable[State]:
        """A state that shares nothing with this one; a deep copy by default.

        Raises:
          NoCopy: if there can be none; the next of the ``fork_ways`` is then gone.
        """
        try:
            return copy.deepcopy(state)
        except (TypeError, copy.Error) as error:
            raise NoCopy(f"{type(state).__name__} cannot be copied: {error}") from error

    def snapshot(self, state: State) -> str | Awaitable[str]:
        """Save a state, and the name to restore it by."""
        raise NotImplementedError

    def restore(self, task: Task, snapshot: str) -> State | Awaitable[State]:
        """A new state like the one that was saved."""
        raise NotImplementedError

    def discard(self, snapshot: str) -> Awaitable[None] | None:
        """Forget what was saved under this name."""

    def close(self, state: State) -> Awaitable[None] | None:
        """Free what a state holds: a process, a connection, a file. Each is closed once."""

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        """Step the state that the turns before the newest lead to."""
        live, turn = self._live.here(), turns[-1]
        before = [turn for turn in turns[:-1] if "failure" not in turn.outcome]
        releases = live.releases(task.id)
        state = await self._state(task, before, releases)
        try:
            reply = await _awaited(self.step(state, turn))
            goes_on = isinstance(cast("object", reply), Reply) and reply.stop == "continue"
            saves = goes_on and "snapshot" in self.fork_ways
            snapshot = await _awaited(self.snapshot(state)) if saves else None
        except BaseException:
            await live.end(state)
            raise
        if goes_on:
            await live.put(_key(task, [*before, turn]), state, snapshot, releases)
        else:
            await live.end(state)
        return reply

    async def release(self, task: Task) -> None:
        """Close all states of a task: its tree is complete."""
        await self._live.here().release(task.id)

    def num_open_states(self) -> int:
        """Number of states that were made in the running event loop and are not closed yet."""
        return self._live.here().num_open

    @cached_property
    def _live(self) -> LiveStatesByLoop[State]:
        async def close(state: State) -> None:
            await _awaited(self.close(state))

        async def discard(snapshot: str) -> None:
            await _awaited(self.discard(snapshot))

        return LiveStatesByLoop(lambda: LiveStates(self.max_live_states, close, discard))

    async def _state(self, task: Task, turns: Sequence[Turn], releases: int) -> State:
        """A state after some turns that is the caller's alone."""
        live, key = self._live.here(), _key(task, turns)
        if "copy" in self.fork_ways and self.max_live_states > 0:
            with contextlib.suppress(NoCopy):
                if (state := await live.copied(key, self._copied)) is not None:
                    return state
                await live.put(key, await self._played(task, turns), None, releases)
                if (state := await live.copied(key, self._copied)) is not None:
                    return state
        if (state := live.taken(key)) is not None:
            return state
        if (snapshot := live.snapshot(key)) is not None:
            return live.opened(await _awaited(self.restore(task, snapshot)))
        return await self._played(task, turns)

    async def _copied(self, state: State) -> State:
        return await _awaited(self.copy(state))

    async def _played(self, task: Task, turns: Sequence[Turn]) -> State:
        """The game from its start through some recorded turns.

        Raises:
          ReplayDiverged: if an observation is not the recorded one.
        """
        live = self._live.here()
        state = live.opened(await _awaited(self.start(task, seed_of("start", task.id))))
        try:
            for number, turn in enumerate(turns, start=1):
                reply = await _awaited(self.step(state, replace(turn, observation="", outcome={})))
                seen = shown_text(shortened_text(reply.observation))
                if reply.stop != "continue" or seen != turn.observation:
                    raise ReplayDiverged(
                        f"task {task.id}, turn {number}: played again, the game answered "
                        f"{seen[:80]!r} ({reply.stop}), not {turn.observation[:80]!r} as before"
                    )
        except BaseException:
            await live.end(state)
            raise
        return state


async def _awaited(result: T | Awaitable[T]) -> T:
    return cast("T", await result if isawaitable(result) else result)


def _key(task: Task, turns: Sequence[Turn]) -> Key:
    return task.id, tuple((turn.text, turn.truncated) for turn in turns)
