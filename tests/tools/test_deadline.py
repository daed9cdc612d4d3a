from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from spanwise.tools.base import Tool, ToolError, ToolTimeout


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
