"""A tool in a process of its own: whatever it does, the run gets a typed error and goes on."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from spanwise.tools import process as process_module
from spanwise.tools.base import Tool, ToolCrash, ToolError, ToolTimeout
from spanwise.tools.process import MAX_BYTES, ProcessTool
from tests.tools.process_tools import Acts, CannotStart

TOOL = ProcessTool(tool=Acts(), num_processes=2)


def asked(query: str, tool: Tool = TOOL) -> Any:
    return asyncio.run(tool(query))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_answers_from_another_process_which_is_kept() -> None:
    text, pid = asked("q")
    assert text == "Q" and pid != os.getpid()
    assert asked("again")[1] == pid
    assert asked("print") == "printed"  # what a tool prints is no answer


def test_code_that_holds_the_interpreter_lock_is_ended_at_its_deadline() -> None:
    impatient = ProcessTool(tool=Acts(deadline_s=0.5))
    pid = asked("q", replace(impatient, tool=Acts()))[1]
    with pytest.raises(ToolTimeout, match=r"Acts gave no answer in 0\.5 s"):
        asked("backtrack", impatient)
    assert is_running(pid)  # of another tool: it is not touched


def test_a_process_past_its_deadline_is_gone_with_all_that_it_started() -> None:
    tool = ProcessTool(tool=Acts(deadline_s=2.0), num_processes=1)
    pid, started = asked("q", tool)[1], asked("start", tool)
    with pytest.raises(ToolTimeout):
        asked("backtrack", tool)
    for _ in range(500):
        if not is_running(pid) and not is_running(started):
            break
        time.sleep(0.01)
    assert not is_running(pid) and not is_running(started)
    assert asked("q", tool)[0] == "Q"  # by a new one


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        ("exit", ToolCrash, "Acts: its process died with exit status 3"),
        ("abort", ToolCrash, "Acts: its process died of SIGABRT"),
        ("leave", ToolError, "SystemExit: 4"),
        ("raise", ToolError, "no route"),
        ("bytes", ToolError, "bytes is not JSON serializable"),
        (f"big {MAX_BYTES}", ToolError, f"the answer has more than {MAX_BYTES} bytes"),
    ],
)
def test_what_goes_wrong_in_it_is_a_typed_error(
    query: str, kind: type[ToolError], message: str
) -> None:
    with pytest.raises(ToolError, match=message) as raised:
        asked(query)
    assert type(raised.value) is kind
    assert asked("q")[0] == "Q"


def test_ten_megabytes_come_through() -> None:
    assert len(asked("big 10000000")) == 10_000_000


def test_more_calls_than_processes_wait_for_one() -> None:
    async def many() -> list[Any]:
        return await asyncio.gather(*(TOOL(f"q{n}") for n in range(40)))

    answers = asyncio.run(many())
    assert [text for text, _ in answers] == [f"Q{n}" for n in range(40)]
    assert len({pid for _, pid in answers}) <= 2


def test_a_tool_that_cannot_be_made_there_says_so_at_the_first_call() -> None:
    alive = len(process_module._alive)
    with pytest.raises(ToolError, match="cannot be made in a process of its own: LookupError"):
        asked("q", ProcessTool(tool=CannotStart()))
    assert len(process_module._alive) == alive


def test_a_tool_that_cannot_be_sent_is_refused_at_once() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Local(Tool):
        deadline_s: float = 1.0

        def call(self, query: str) -> str:
            return query

    with pytest.raises(ValueError, match="Local cannot be sent to another process"):
        ProcessTool(tool=Local())
    with pytest.raises(ValueError, match="num_processes must be at least 1"):
        ProcessTool(tool=Acts(), num_processes=0)
