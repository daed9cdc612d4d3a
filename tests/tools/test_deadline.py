from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest

from spanwise.tools.base import MAX_RUNNING, Tool, ToolError, ToolTimeout, abandoned_threads


@dataclass(frozen=True, kw_only=True)
class Calls(Tool):
    function: Callable[[str], Any]
    deadline_s: float = 5.0

    def call(self, query: str) -> Any:
        return self.function(query)


def raises(error: BaseException) -> Callable[[str], Any]:
    def call(query: str) -> Any:
        raise error

    return call


def test_an_answer_comes_through() -> None:
    assert asyncio.run(Calls(function=str.upper)("q")) == "Q"


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), StopIteration(), MemoryError()],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_tool_raises_is_the_tools_error(error: BaseException) -> None:
    with pytest.raises(ToolError, match=type(error).__name__) as raised:
        asyncio.run(Calls(function=raises(error))("q"))
    assert not isinstance(raised.value, ToolTimeout)


def test_a_tool_that_hangs_is_left_at_its_deadline() -> None:
    let_go = threading.Event()
    tool = Calls(function=lambda query: let_go.wait(), deadline_s=0.05)
    try:
        with pytest.raises(ToolTimeout, match=r"no answer in 0\.05 s"):
            asyncio.run(tool("q"))
    finally:
        let_go.set()


def test_hanging_calls_do_not_keep_others_waiting() -> None:
    let_go = threading.Event()

    async def main() -> list[object]:
        hangs = Calls(function=lambda query: let_go.wait(), deadline_s=0.5)
        quick = Calls(function=str.upper)
        hanging = [asyncio.create_task(hangs("q")) for _ in range(100)]
        answers = await asyncio.gather(*(quick(c) for c in "abc"))
        assert not any(task.done() for task in hanging)
        outcomes = await asyncio.gather(*hanging, return_exceptions=True)
        return [*answers, *(type(o) for o in outcomes)]

    try:
        assert asyncio.run(main()) == ["A", "B", "C", *[ToolTimeout] * 100]
    finally:
        let_go.set()


def test_two_hundred_calls_that_hang_take_a_limited_number_of_threads() -> None:
    let_go = threading.Event()
    before = threading.active_count()
    most: list[int] = []

    def hang(query: str) -> None:
        most.append(threading.active_count() - before)
        let_go.wait()

    # Long enough for all threads to begin before the first is given up.
    hangs, quick = Calls(function=hang, deadline_s=3.0), Calls(function=str.upper)

    async def main() -> Counter[str]:
        outcomes = await asyncio.gather(*(hangs("q") for _ in range(200)), return_exceptions=True)
        assert abandoned_threads() == MAX_RUNNING
        with pytest.raises(ToolError, match="128 calls hang although their deadlines are over"):
            await quick("q")
        let_go.set()
        while abandoned_threads():
            await asyncio.sleep(0.01)
        assert await quick("q") == "Q"  # there is room again
        return Counter(type(outcome).__name__ for outcome in outcomes)

    try:
        assert asyncio.run(main()) == {"ToolTimeout": MAX_RUNNING, "ToolError": 200 - MAX_RUNNING}
    finally:
        let_go.set()
    assert len(most) == MAX_RUNNING and max(most) <= MAX_RUNNING


def test_calls_beyond_the_limit_wait_and_waiting_is_not_held_against_them() -> None:
    def slow(query: str) -> str:
        time.sleep(0.1)
        return query

    tool = Calls(function=slow, deadline_s=1.0)

    async def main() -> list[str]:
        return await asyncio.gather(*(tool(str(n)) for n in range(3 * MAX_RUNNING)))

    for _ in range(2):  # in one event loop after another
        assert asyncio.run(main()) == [str(n) for n in range(3 * MAX_RUNNING)]


def test_a_tool_runs_in_the_context_of_its_caller() -> None:
    caller: ContextVar[str] = ContextVar("caller")

    async def main() -> object:
        caller.set("task 7")
        return await Calls(function=lambda query: caller.get())("q")

    assert asyncio.run(main()) == "task 7"
