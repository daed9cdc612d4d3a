"""The states of games that are being played: few are kept, and every one is closed."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

State = TypeVar("State")

Key = tuple[str, tuple[tuple[str, bool], ...]]
"""A place in a game: the task's id, and the turns so far, each with whether it was cut."""


@dataclass
class Kept(Generic[State]):
    """What is kept of one place in a game."""

    states: list[State]
    """States there, all alike: those that nobody has gone on with."""

    snapshot: str | None = None
    """Name under which the environment can restore one."""

    users: int = 0
    """Number of copies that are being made."""

    dropped: bool = False
    """To be closed by the last of its users."""


class LiveStates(Generic[State]):
    """The states kept in one event loop; the least recently used are closed first.

    A state that was made or taken belongs to the caller, who puts it back or ends it. Those of
    a task are ended by ``release``; what was out at that moment is ended when it is put back.
    """

    def __init__(
        self,
        limit: int,
        close: Callable[[State], Awaitable[None]],
        discard: Callable[[str], Awaitable[None]],
    ) -> None:
        self._limit, self._close, self._discard = limit, close, discard
        self._kept: OrderedDict[Key, Kept[State]] = OrderedDict()
        self._releases: Counter[str] = Counter()
        self.num_open = 0
        """States that were made and are not closed yet, those in use among them."""

    def releases(self, task_id: str) -> int:
        """How often the states of a task have been released; for ``put``."""
        return self._releases[task_id]

    async def put(self, key: Key, state: State, snapshot: str | None, releases: int) -> None:
        """Keep a state, unless its task was released since ``releases`` was read."""
        if releases != self._releases[key[0]]:
            await self._drop(Kept([state], snapshot))
            return
        if (kept := self._kept.setdefault(key, Kept([]))).snapshot is None:
            kept.snapshot = snapshot
        elif snapshot is not None:
            await self._discard(snapshot)
        kept.states.append(state)
        self._kept.move_to_end(key)
        while self._kept and sum(len(k.states) or 1 for k in self._kept.values()) > self._limit:
            await self._drop(self._kept.popitem(last=False)[1])

    async def copied(self, key: Key, copy: Callable[[State], Awaitable[State]]) -> State | None:
        """A copy of a kept state, which stays; None if none is kept."""
        kept = self._kept.get(key)
        if kept is None or not kept.states:
            return None
        self._kept.move_to_end(key)
        kept.users += 1
        try:
            return self.opened(await copy(kept.states[0]))
        finally:
            kept.users -= 1
            if kept.dropped:
                await self._drop(kept)

    def taken(self, key: Key) -> State | None:
        """A kept state itself, which is the caller's now; None if none is kept."""
        kept = self._kept.get(key)
        if kept is None or not kept.states or kept.users:
            return None
        state = kept.states.pop()
        if not kept.states and kept.snapshot is None:
            del self._kept[key]
        return state

    def snapshot(self, key: Key) -> str | None:
        """The name under which a state at this place was saved."""
        return kept.snapshot if (kept := self._kept.get(key)) is not None else None

    def opened(self, state: State) -> State:
        """Count a state that was made."""
        self.num_open += 1
        return state

    async def end(self, state: State) -> None:
        """Close a state of the caller's."""
        self.num_open -= 1
        await self._close(state)

    async def release(self, task_id: str) -> None:
        """Close all kept states of a task."""
        self._releases[task_id] += 1
        for key in [key for key in self._kept if key[0] == task_id]:
            await self._drop(self._kept.pop(key))

    async def _drop(self, kept: Kept[State]) -> None:
        kept.dropped = True
        if kept.users:
            return
        states, kept.states = kept.states, []
        snapshot, kept.snapshot = kept.snapshot, None
        for state in states:
            await self.end(state)
        if snapshot is not None:
            await self._discard(snapshot)


class LiveStatesByLoop(Generic[State]):
    """Live states for each event loop: a session or a process belongs to the loop it began in."""

    def __init__(self, make: Callable[[], LiveStates[State]]) -> None:
        self._make = make
        self._by_loop: dict[Any, LiveStates[State]] = {}

    def here(self) -> LiveStates[State]:
        """Those of the running loop."""
        for loop in [loop for loop in list(self._by_loop) if loop.is_closed()]:
            self._by_loop.pop(loop, None)
        return self._by_loop.setdefault(asyncio.get_running_loop(), self._make())
