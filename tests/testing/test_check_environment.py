"""``check_environment`` passes the library's environment and fails each broken one."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from spanwise.envs.base import Environment, Reply, Task
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.testing import check_environment


@dataclass(frozen=True, kw_only=True)
class Guess(Environment):
    """A correct environment: ``more`` asks for another hint, a number is a guess."""

    stop_strings = (";",)

    def tasks(self, split):
        return [Task(id=f"{split}-{n}", question=f"Guess {n}", answers=(str(n),)) for n in range(4)]

    def messages(self, task):
        return [{"role": "user", "content": task.question}]

    async def reply(self, task, turns):
        text = turns[-1].text.strip().rstrip(";")
        if text == "more":
            return Reply(stop="continue", observation="no hint", outcome={"calls": len(turns)})
        if text in task.answers:
            return Reply(stop="end", reward=1.0)
        return Reply(stop="malformed", reward=0.0)


def solve(task, turns):
    return task.answers[0] if turns else "more"


def test_a_correct_environment_passes():
    check_environment(Guess(), texts=("more", "x", "more;"), solve=solve)


class PaysOnTheWay(Guess):
    """A hint costs 0.25, and the right number is paid in two parts, with a turn between."""

    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        if turns[-1].text == "thanks" and turns[0].text in task.answers:
            return Reply(stop="end", reward=0.0)
        if turns[-1].text in task.answers:
            return Reply(stop="continue", reward=0.5, observation="right")
        return replace(reply, reward=-0.25)


def test_all_that_a_player_is_paid_counts():
    def knows(task, turns):
        return "thanks" if turns else task.answers[0]

    check_environment(PaysOnTheWay(), texts=("more", "x"), solve=knows)

    def asks(task, turns):
        return knows(task, turns) if turns else "more"

    with pytest.raises(AssertionError, match=r"solve earns -0\.5, no more than a text"):
        check_environment(PaysOnTheWay(), texts=("more", "x"), solve=asks)


def test_the_search_environment_passes():
    check_environment(MultiHopSearch(), num_tasks=1)


class SameIds(Guess):
    def tasks(self, split):
        return [replace(task, id=task.question) for task in super().tasks(split)]


class Shuffled(Guess):
    calls: ClassVar[list] = []

    def tasks(self, split):
        self.calls.append(split)
        return super().tasks(split)[:: -1 if len(self.calls) % 2 else 1]


class Empty(Guess):
    def tasks(self, split):
        return [] if split == "dev" else super().tasks(split)


class NoRole(Guess):
    def messages(self, task):
        return [{"content": task.question}]


class CountingMessages(Guess):
    calls: ClassVar[list] = []

    def messages(self, task):
        self.calls.append(task)
        return [{"role": "user", "content": f"{len(self.calls)}: {task.question}"}]


class Raises(Guess):
    async def reply(self, task, turns):
        int(turns[-1].text)
        return await super().reply(task, turns)


class Remembers(Guess):
    """Counts the turns itself instead of looking at them."""

    calls: ClassVar[list] = []

    async def reply(self, task, turns):
        self.calls.append(task)
        reply = await super().reply(task, turns)
        return replace(reply, outcome={"calls": len(self.calls)})


class WritesTurns(Guess):
    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        turns.append(turns[-1])
        return reply


class RewritesOutcomes(Guess):
    """Changes what was said of an earlier turn."""

    async def reply(self, task, turns):
        for turn in turns[:-1]:
            turn.outcome["calls"] = 0
        return await super().reply(task, turns)


class WritesTask(Guess):
    async def reply(self, task, turns):
        task.info["tries"] = task.info.get("tries", 0) + 1
        return await super().reply(task, turns)


class TellsInTheChat(Guess):
    """Keeps one chat for each task, and writes every turn into it."""

    chats: ClassVar[dict] = {}

    def messages(self, task):
        return self.chats.setdefault(task.id, super().messages(task))

    async def reply(self, task, turns):
        self.messages(task).append({"role": "assistant", "content": turns[-1].text})
        return await super().reply(task, turns)


class Ends(Guess):
    """Says something of its own wherever a trajectory ends."""

    said: ClassVar[dict] = {}

    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        return reply if reply.stop == "continue" else replace(reply, **self.said)


class UnknownStop(Ends):
    said: ClassVar[dict] = {"stop": "done"}


class RewardOfText(Ends):
    said: ClassVar[dict] = {"reward": "1"}


class OutcomeOfNaN(Ends):
    said: ClassVar[dict] = {"outcome": {"score": math.nan}}


class RewardOfNaN(Ends):
    said: ClassVar[dict] = {"reward": math.nan}


class RewardOnTheWayOfNaN(Guess):
    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        return replace(reply, reward=math.nan) if reply.stop == "continue" else reply


class ObservationOfBytes(Guess):
    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        return replace(reply, observation=reply.observation.encode())


class OutcomeOfObjects(Guess):
    async def reply(self, task, turns):
        return replace(await super().reply(task, turns), outcome={"task": task})


class NotAReply(Guess):
    async def reply(self, task, turns):
        return ("malformed", 0.0)


class NeverRight(Guess):
    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        return reply if reply.stop == "continue" else replace(reply, reward=0.0)


class NeverEnds(Guess):
    async def reply(self, task, turns):
        reply = await super().reply(task, turns)
        if reply.stop == "end":
            return Reply(stop="continue", observation="go on")
        return reply


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SameIds, "stands twice"),
        (Shuffled, "same order every time"),
        (Empty, "'dev' has no tasks"),
        (NoRole, "needs a role"),
        (CountingMessages, "the same chat every time"),
        (Raises, r"reply\(\) raised ValueError"),
        (Remembers, "function of its arguments alone"),
        (WritesTurns, "leave the turns as they are"),
        (RewritesOutcomes, "leave the turns as they are"),
        (WritesTask, "leave the task as it is"),
        (TellsInTheChat, "same chat after reply"),
        (UnknownStop, "stop is one of continue, end, .*, not done"),
        (ObservationOfBytes, "the observation is text, got bytes"),
        (RewardOfNaN, "finite number, got nan"),
        (RewardOnTheWayOfNaN, "finite number, got nan"),
        (RewardOfText, "reward must be a number, not str"),
        (OutcomeOfNaN, "cannot be written as JSON"),
        (OutcomeOfObjects, "cannot be written as JSON"),
        (NotAReply, "gives a Reply, got tuple"),
        (NeverRight, "no more than a text that knows nothing"),
        (NeverEnds, "did not come to an end"),
    ],
)
def test_broken_environments_fail(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_environment(broken(), texts=("more", "x"), solve=solve)
