"""Monte Carlo values of a place inside a rollout: go on from there many times."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from spanwise.envs.base import Task
from spanwise.rollout.base import Rollout
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.tree_builder import TreeBuilder
from spanwise.runtime.seeds import seed_of
from spanwise.samplers.base import Completion, Request, Sampler
from spanwise.tree import Branch


class Place(NamedTuple):
    """The place before a model token: after ``offset`` tokens of ``branch.turns[turn]``."""

    turn: int
    offset: int


async def continuation_returns(
    context: RolloutContext,
    rollout: Rollout,
    task: Task,
    branch: Branch,
    place: Place,
    count: int,
    seed: int,
) -> list[float]:
    """Returns of fresh trajectories that share everything before a place, what was paid too.

    A stop string that begins before the place and ends after it is not seen by the sampler.
    Those that could not be scored are left out. The seed of the context is not used.
    """
    grown = [
        _continue(context, rollout, task, branch, place, seed_of(seed, task.id, i))
        for i in range(count)
    ]
    return [paid for paid in await asyncio.gather(*grown) if paid is not None]


async def _continue(
    context: RolloutContext, rollout: Rollout, task: Task, branch: Branch, place: Place, seed: int
) -> float | None:
    turn = branch.turns[place.turn]
    before = branch.nodes[: place.turn + 1]
    prefix = tuple(t for n in before for t in (*n.tokens, *n.observation))
    forced = _Forced(context.sampler, prefix, turn.tokens[: place.offset])
    path = (0,) * (place.turn + 1)
    builder = TreeBuilder(rollout, replace(context, sampler=forced, seed=seed), task, 0)
    builder.nodes = {(0,) * depth: replace(n, path=(0,) * depth) for depth, n in enumerate(before)}
    await builder.chain(path)
    tree = builder.freeze()
    return tree.returns(tree.leaves()[0])


class _Forced(Sampler):
    """Begins the turn that follows one context with given tokens; else the sampler it has."""

    def __init__(self, inner: Sampler, context: Sequence[int], prefix: Sequence[int]) -> None:
        self._inner, self._context, self._prefix = inner, tuple(context), tuple(prefix)

    async def sample(self, request: Request) -> Completion:
        if request.prompt != self._context or not self._prefix:
            return await self._inner.sample(request)
        rest = await self._inner.sample(
            replace(
                request,
                prompt=self._context + self._prefix,
                max_tokens=request.max_tokens - len(self._prefix),
            )
        )
        # Log-probs of the given tokens are in the rollout; nobody reads them here.
        blank = (0.0,) * len(self._prefix)
        return Completion(
            tokens=self._prefix + rest.tokens,
            engine_logprobs=blank + rest.engine_logprobs,
            sampling_logprobs=blank + rest.sampling_logprobs,
            finish=rest.finish,
        )

    def update_weights(self, model: object) -> None:
        raise RuntimeError("the weights of a study are fixed")
