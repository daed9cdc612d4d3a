"""The watchdog says what is waited for, although the event loop is stuck, and ends the run."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanwise.envs.base import Reply, Task, Turn
from spanwise.rollout import Chains, FailurePolicy, RolloutContext, run_async
from spanwise.runtime.waits import open_waits, waiting
from spanwise.runtime.watchdog import Watchdog
from spanwise.samplers.base import Completion, Request
from tests.word_game import CharTokenizer, PathSampler, WordGame

ROOT = Path(__file__).parent.parent.parent


class Told:
    """Keeps what is told, and can wait for a number of lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def wait(self, number: int) -> None:
        for _ in range(3000):
            if len(self.lines) >= number:
                return
            time.sleep(0.01)
        raise AssertionError(f"not told {number} times in 30 s: {self.lines}")


@dataclass(frozen=True, kw_only=True)
class Stuck(WordGame):
    """Blocks the event loop at its first reply until enough was told."""

    told: Told
    lines: int

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        self.told.wait(self.lines)
        return await super().reply(task, turns)


def win(prompt: str, request: Request) -> str:
    return "win;"


TASK = Task(id="t7", question="Q:", answers=("win",))


def grown(told: Told, lines: int, sampler: PathSampler) -> None:
    context = RolloutContext(
        env=Stuck(told=told, lines=lines),
        sampler=sampler,
        tokenizer=CharTokenizer(),
        seed=0,
        failures=FailurePolicy(engine_deadline_s=60.0),
    )
    run_async(Chains(num_chains=1)(context, TASK, step=3))


def seconds(line: str) -> float:
    found = re.search(r"waiting since \d\d:\d\d:\d\d \(([\d.]+) s\)", line)
    assert found is not None, line
    return float(found[1])


def test_a_reply_that_blocks_the_loop_is_reported_ever_more_rarely() -> None:
    told = Told()
    with Watchdog(report_after_s=0.05, stop_after_s=0).watching(told):
        grown(told, 3, PathSampler(win))
    for line, after_s in zip(told.lines[:3], (0.05, 0.1, 0.2), strict=True):
        assert line.endswith("for the environment, step 3, task t7, node 0")
        assert seconds(line) >= after_s


def test_an_engine_that_hangs_is_reported_with_the_number_of_other_waits() -> None:
    told = Told()

    class Slow(PathSampler):
        async def sample(self, request: Request) -> Completion:
            while not told.lines:
                await asyncio.sleep(0.01)
            return await super().sample(request)

    context = RolloutContext(env=WordGame(), sampler=Slow(win), tokenizer=CharTokenizer(), seed=0)
    with Watchdog(report_after_s=0.05, stop_after_s=0).watching(told):
        run_async(Chains(num_chains=5)(context, TASK, step=3))
    assert told.lines[0].endswith("for the engine, step 3, task t7, node 0, and for 4 more")


def test_work_is_reported() -> None:
    told = Told()
    with Watchdog(report_after_s=0.05, stop_after_s=0).watching(told):
        with waiting("the update, step 4"):
            told.wait(1)
        assert not open_waits()
    assert told.lines[0].endswith("for the update, step 4")


def test_short_waits_say_nothing_and_the_thread_ends() -> None:
    told = Told()
    with Watchdog(report_after_s=30.0, stop_after_s=60.0).watching(told):
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
        with waiting("the update, step 4"):
            time.sleep(0.05)
    with Watchdog(report_after_s=0, stop_after_s=0).watching(told):
        assert all(thread.name != "watchdog" for thread in threading.enumerate())
    assert not told.lines


def test_a_run_that_waits_too_long_is_sent_one_signal() -> None:
    signals: list[int] = []
    told = Told()
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        watchdog = Watchdog(report_after_s=0, stop_after_s=0.05)
        with watchdog.watching(told), waiting("the update, step 4"):
            told.wait(1)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]
    assert len(told.lines) == 1 and told.lines[0].startswith("stopping: waiting since")


def test_outside_the_main_thread_nothing_is_stopped() -> None:
    told = Told()

    def watched() -> None:
        watchdog = Watchdog(report_after_s=0.05, stop_after_s=0.01)
        with watchdog.watching(told), waiting("the update, step 4"):
            told.wait(1)

    thread = threading.Thread(target=watched)
    thread.start()
    thread.join()
    assert told.lines[0].startswith("waiting since")


ENDLESS = """
import re, signal, sys, time
from spanwise.runtime import watchdog
from spanwise.runtime.waits import waiting

def held():  # a regular expression that takes years, with the interpreter lock held
    re.match("(a+)+$", "a" * 60 + "b")

def asleep():
    while True:
        time.sleep(1)

watchdog.GRACE_S = 0.3
signal.signal(signal.SIGTERM, lambda number, frame: print("asked to stop", flush=True))
with watchdog.Watchdog(report_after_s=0.0, stop_after_s=0.3).watching(print):
    with waiting("the update, step 4"):
        {how}()
"""


@pytest.mark.processes
@pytest.mark.parametrize(("how", "asked"), [("held", False), ("asleep", True)])
def test_a_process_that_does_not_stop_is_ended_with_its_stacks(how: str, asked: bool) -> None:
    script = ENDLESS.replace("{how}", how)
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert ("asked to stop" in run.stdout) == asked
    assert f"in {how}" in run.stderr  # where it hangs


@pytest.mark.parametrize("option", ["report_after_s", "stop_after_s"])
def test_negative_times_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        Watchdog(**{option: -1.0})
