from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")

from spanwise.envs.agents.mcp_chat import MCPChat, Session
from spanwise.envs.base import Split, Task, Turn
from spanwise.errors import SpanwiseError
from spanwise.rollout import FailurePolicy, RolloutContext, TreeSearch
from spanwise.samplers.base import Request
from spanwise.samplers.scripted import ScriptedSampler
from spanwise.tree import Tree
from tests.envs.agents import counter_server
from tests.envs.agents.till import call
from tests.envs.chat_templates import HERMES, byte_tokenizer

pytestmark = pytest.mark.processes
COMMAND = f"{sys.executable} {Path(counter_server.__file__)}"


@dataclass(frozen=True, kw_only=True)
class Counting(MCPChat):
    """Count to the task's number."""

    server: str = COMMAND

    def tasks(self, split: Split) -> Sequence[Task]:
        return [Task(id=f"{split}-{n}", question=f"Count to {n}.") for n in range(6)]

    def opening(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    async def score(self, inner: Session, task: Task, answer: str | None) -> float:
        return float(await inner.call("add", {"amount": 0}) == task.question[9:-1])


class InProcess(Counting):
    def connection(self) -> Any:
        return counter_server.server


def observations(env: MCPChat, *texts: str) -> list[Any]:
    async def play() -> list[Any]:
        task, given, found = env.tasks("train")[3], [], []
        try:
            for text in texts:
                reply = await env.reply(task, [*given, Turn(text=text)])
                given.append(Turn(text=text, observation=reply.observation, outcome=reply.outcome))
                found.append(reply)
        finally:
            await env.release(task)
            assert env.num_open_states() == 0
        return found

    return asyncio.run(play())


def grown(env: MCPChat, **search: Any) -> Tree:
    tokenizer = byte_tokenizer(HERMES)
    env.check(tokenizer)

    def script(prompt: str, request: Request) -> str:
        if prompt.count("<tool_response>") == 3:
            return "done<|im_end|>"
        return call("add", amount=request.seed % 3)

    context = RolloutContext(
        env=env,
        sampler=ScriptedSampler(script, tokenizer),
        tokenizer=tokenizer,
        seed=0,
        failures=FailurePolicy(backoff_s=0.0),
    )
    rollout = TreeSearch(max_turn_tokens=200, max_response_tokens=5000, **search)
    return asyncio.run(rollout(context, env.tasks("train")[3], step=1))


def test_the_servers_tools_are_called_and_their_errors_are_told() -> None:
    first, second, failed, wrong, end = observations(
        Counting(), call("add", amount=1), call("add", amount=2), call("fail"), call("add"), "3"
    )
    assert (first.observation, second.observation) == ("1", "3")
    assert "tool fail" in failed.observation and failed.outcome["wrong_calls"] == 0
    assert "'amount' is a required property" in wrong.observation
    assert (end.stop, end.reward) == ("end", 1.0)


def test_every_branch_has_a_session_and_a_fork_replays_it() -> None:
    tree = grown(Counting(), num_chains=2, num_rounds=1, num_expansions=2)
    assert len(tree.leaves()) == 4 and all(leaf.failure is None for leaf in tree.leaves())
    for branch in tree.branches():
        sums, total = [], 0
        for node in branch.turns[:-1]:
            total += int(node.text.partition('"amount": ')[2][0])
            sums.append(str(total))
        assert [node.observation_text for node in branch.turns[:-1]] == sums
        assert branch.leaf.reward == float(total == 3)


def test_a_server_that_only_reads_has_one_session_for_all() -> None:
    opened: list[Session] = []

    class Shared(InProcess):
        async def _session(self) -> Session:
            opened.append(await super()._session())
            return opened[-1]

    env = Shared(read_only=True)
    tree = grown(env, num_chains=3, num_rounds=1, num_expansions=2)
    assert len(tree.leaves()) == 5
    assert len(opened) == 2  # one to describe the tools
    assert all(session.users == 0 for session in opened)


def test_servers_that_die_hang_or_are_not_there_are_failures_in_words() -> None:
    from spanwise.tools.base import ToolCrash, ToolTimeout

    with pytest.raises(ToolCrash, match="gone away"):
        observations(Counting(), call("die"))
    with pytest.raises(ToolTimeout, match=r"sleep gave no answer in 3 s"):
        observations(Counting(deadline_s=3), call("sleep", seconds=8))
    for server in ("/no/such/server", "http://127.0.0.1:9/mcp", f"{sys.executable} -c pass"):
        with pytest.raises(SpanwiseError, match=r"env\.server .*cannot be reached"):
            Counting(server=server, deadline_s=5).check(byte_tokenizer(HERMES))
    with pytest.raises(SpanwiseError, match=r"env\.server is empty"):
        Counting(server="").check(byte_tokenizer(HERMES))
