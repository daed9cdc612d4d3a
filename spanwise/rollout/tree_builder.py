"""A tree while it grows: turns sampled, answered by the environment, and put in place."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pathlib
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from types import TracebackType
from typing import Any

from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.errors import one_line
from spanwise.models.tokenizer import ChatOfPlainText, encoded, plain_text
from spanwise.rollout.base import Rollout
from spanwise.rollout.calls import CallRunner
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.failures import RunStopped
from spanwise.runtime.seeds import seed_of
from spanwise.samplers.base import Completion, Request
from spanwise.tree import Expansion, Failure, Node, Path, Tree


def _content(env: Environment, task: Task) -> str:
    """What a turn is scored by: the task and the code of its environment."""
    return repr((task.question, task.answers, sorted(task.info.items()), _source(type(env))))


@functools.cache
def _source(kind: type) -> str:
    """The text of the file that a class is defined in; empty for one of no file."""
    try:
        return pathlib.Path(inspect.getfile(kind)).read_text(encoding="utf-8", errors="replace")
    except (OSError, TypeError):
        return ""


class TreeBuilder:
    """One tree while it grows: chains are added to it until it is frozen.

    Chains grow at the same time and each writes only its own nodes, so a slow tool
    holds up its own chain alone. As a context it releases, at its end, what the environment
    holds for the task.
    """

    def __init__(self, rollout: Rollout, context: RolloutContext, task: Task, step: int) -> None:
        self.rollout, self.context, self.task, self.step = rollout, context, task, step
        try:
            prompt = prompt_tokens(context.tokenizer, context.env, task)
        except Exception as error:
            raise RunStopped(
                f"the prompt of task {task.id} cannot be rendered: {one_line(error)}"
            ) from error
        self._digest = sha256(_content(context.env, task).encode())
        self.nodes: dict[Path, Node] = {
            (): Node(path=(), observation=prompt, stop="prompt", observation_text=task.question)
        }

    async def __aenter__(self) -> TreeBuilder:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.context.env.release(self.task)

    async def chains(self, starts: Sequence[tuple[Path, Expansion | None]]) -> None:
        """Grow a chain from each start, all at once."""
        async with asyncio.TaskGroup() as group:
            for path, expansion in starts:
                group.create_task(self.chain(path, expansion))

    async def chain(self, path: Path, expansion: Expansion | None = None) -> None:
        """Sample the turn at ``path`` and go on to the end of the trajectory."""
        while True:
            node = await self._remembered_turn(path)
            self.nodes[path] = replace(node, expansion=expansion)
            if node.is_leaf:
                return
            path, expansion = (*path, 0), None

    async def _remembered_turn(self, path: Path) -> Node:
        """The turn from the journal, or sampled and put there; one that failed is not kept."""
        journal, task_id = self.context.journal, self.task.id
        if journal is None:
            return await self.turn(path)
        seen = self._digest.copy()
        seen.update(repr(self._context(path)).encode())
        digest = seen.hexdigest()
        if (node := journal.lookup(self.step, task_id, path, digest)) is not None:
            return node
        node = await self.turn(path)
        return node if node.failure else journal.write(self.step, task_id, node, digest)

    def _context(self, path: Path) -> tuple[int, ...]:
        """All tokens before the turn at ``path``."""
        before = [self.nodes[path[:depth]] for depth in range(len(path))]
        return tuple(t for n in before for t in (*n.tokens, *n.observation))

    async def turn(self, path: Path) -> Node:
        """Sample one turn and have the environment answer it."""
        before = [self.nodes[path[:depth]] for depth in range(len(path))]
        context = self._context(path)
        room = self._room(len(context))
        request = Request(
            prompt=context,
            seed=seed_of(self.context.seed, self.step, self.task.id, path, 0),
            max_tokens=min(self.rollout.max_turn_tokens, room),
            stop=self.context.env.stop_strings,
            sampling=self.rollout.sampling,
            tree=f"{self.step}:{self.task.id}",
        )
        caller = CallRunner(self.context, self.task, self.step, path)
        completion = await caller.completion(request)
        if isinstance(completion, Failure):
            faults = tuple(caller.faults)
            return Node(path=path, stop="failure", failure=completion, faults=faults)
        text = self.context.tokenizer.decode(completion.tokens, skip_special_tokens=False)
        turns = [
            Turn(
                text=n.text,
                truncated=n.truncated,
                observation=n.observation_text,
                outcome=n.outcome,
            )
            for n in before[1:]
        ]
        turns.append(Turn(text=text, truncated=completion.finish == "length"))
        reply = await caller.reply(turns)
        reply, observation = self._rendered(reply)
        if (
            reply.stop == "continue"
            and self._room(len(context + completion.tokens + observation)) < 1
        ):
            turns[-1] = replace(turns[-1], truncated=True)
            reply, observation = await caller.reply(turns), ()
            if reply.stop == "continue":
                message = "the environment goes on after a turn that the limit cut"
                failure = Failure(kind="length_limit", message=message)
                reply = Reply(stop="failure", failure=failure, outcome=reply.outcome)
        if turns[-1].truncated and reply.stop != "continue" and reply.reward is not None:
            reply = replace(reply, stop="length")  # whatever the environment calls it
        node = _node(path, completion, text, reply, observation)
        return replace(node, faults=tuple(caller.faults), truncated=completion.finish == "length")

    def _rendered(self, reply: Reply) -> tuple[Reply, tuple[int, ...]]:
        """The reply and its observation's tokens, or a failure if it cannot be rendered."""
        if not reply.observation:
            return reply, ()
        env, tokenizer = self.context.env, self.context.tokenizer
        try:
            shown = plain_text(tokenizer, reply.observation, env.own_tags)
            return reply, encoded(tokenizer, env.rendered(shown, tokenizer))
        except Exception as error:
            failure = self.context.failed("tool_error", error)
            return Reply(stop="failure", failure=failure, outcome=reply.outcome), ()

    def _room(self, used: int) -> int:
        return len(self.nodes[()].observation) + self.rollout.max_response_tokens - used

    def freeze(self) -> Tree:
        """The tree as it is now."""
        return Tree(task_id=self.task.id, nodes=tuple(self.nodes[p] for p in sorted(self.nodes)))


def prompt_tokens(tokenizer: Any, env: Environment, task: Task) -> tuple[int, ...]:
    """The task's chat, through the tokenizer's own chat template."""
    return encoded(tokenizer, env.prompt(task, ChatOfPlainText(tokenizer, env.own_tags)))


def _node(
    path: Path, completion: Completion, text: str, reply: Reply, observation: tuple[int, ...]
) -> Node:
    return Node(
        path=path,
        tokens=completion.tokens,
        engine_logprobs=completion.engine_logprobs,
        sampling_logprobs=completion.sampling_logprobs,
        observation=observation,
        stop=reply.stop,
        reward=reply.reward,
        success=reply.success,
        failure=reply.failure,
        text=text,
        observation_text=reply.observation if observation else "",
        label=reply.label,
        outcome=reply.outcome,
    )
