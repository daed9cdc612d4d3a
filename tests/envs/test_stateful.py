from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from spanwise.envs.base import Reply, Task, Turn
from spanwise.envs.stateful import ReplayDiverged, StatefulEnvironment
from spanwise.errors import SpanwiseError
from spanwise.rollout import Chains, FailurePolicy, RolloutContext, TreeSearch
from spanwise.rollout.context import Journal
from spanwise.samplers.base import Request
from spanwise.testing import check_environment
from spanwise.tools.base import ToolTimeout
from spanwise.tree import Node, Path, Tree
from tests.envs import windy_walk
from tests.envs.windy_walk import ReplayedWalk, SavedWalk, Walk, WindyWalk
from tests.word_game import CharTokenizer, PathSampler

SEARCH = TreeSearch(num_chains=4, num_rounds=3, num_expansions=5)
KINDS = [WindyWalk, ReplayedWalk, SavedWalk]


def wanders(prompt: str, request: Request) -> tuple[str, float]:
    return "++-"[request.seed % 3] + ";", -(request.seed % 97) / 50


def grow(
    env: WindyWalk,
    rollout: Any = SEARCH,
    journal: Journal | None = None,
    policy: FailurePolicy | None = None,
) -> Tree:
    context = RolloutContext(
        env=env,
        sampler=PathSampler(wanders),
        tokenizer=CharTokenizer(),
        seed=0,
        failures=policy or FailurePolicy(backoff_s=0.0),
        journal=journal,
    )
    return asyncio.run(asyncio.wait_for(rollout(context, env.tasks("train")[0], step=1), 20))


@pytest.fixture(autouse=True)
def nothing_is_saved() -> Iterator[None]:
    windy_walk.saved.clear()
    yield
    assert not windy_walk.saved, "a snapshot was not discarded"


def test_every_way_to_fork_gives_the_same_tree_and_leaves_no_state_behind() -> None:
    trees = []
    for kind in KINDS:
        for limit in (256, 3, 0):
            env = kind(max_live_states=limit)
            trees.append(grow(env))
            assert not env.log["open"], f"{kind.__name__}, {limit}: states were left open"
    assert all(tree == trees[0] for tree in trees[1:])
    leaves = trees[0].leaves()
    assert len(leaves) == SEARCH.num_leaves and all(leaf.failure is None for leaf in leaves)
    assert len({len(leaf.path) for leaf in leaves}) > 1  # games of several lengths were forked


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_costs_one_step_a_turn(kind: type[WindyWalk]) -> None:
    env = kind()
    tree = grow(env, Chains(num_chains=1))
    assert len(tree.nodes) > 3
    assert env.log["steps"] == len(tree.nodes) - 1


def test_a_copied_or_saved_game_is_never_played_again() -> None:
    for kind in (WindyWalk, SavedWalk):
        env = kind()
        tree = grow(env)
        assert env.log["steps"] == len(tree.nodes) - 1


def test_a_thousand_forks_leave_no_state_behind() -> None:
    for kind in KINDS:
        env = kind(max_live_states=50)
        tree = grow(env, TreeSearch(num_chains=10, num_rounds=10, num_expansions=100))
        assert sum(node.expansion is not None for node in tree.nodes) == 1000
        assert not env.log["open"]


def test_few_states_are_kept_while_a_tree_grows() -> None:
    most = 0

    class Watched(WindyWalk):
        def step(self, state: Walk, turn: Turn) -> Reply:
            nonlocal most
            most = max(most, len(self.log["open"]))
            return super().step(state, turn)

    grow(Watched(max_live_states=5), TreeSearch(num_chains=30, num_rounds=2, num_expansions=30))
    assert 1 < most <= 5 + 2  # the one that is stepped, and the one that it was copied from


class Remembered(Journal):
    """A journal that forgets what comes after its first turns, as a kill does."""

    def __init__(self, nodes: dict[Path, Node]) -> None:
        self.nodes = nodes

    def lookup(self, step: int, task_id: str, path: Path, seen: str) -> Node | None:
        return self.nodes.get(path)

    def write(self, step: int, task_id: str, node: Node, seen: str) -> Node:
        return node


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_the_same_tree_comes_out(kind: type[WindyWalk]) -> None:
    whole = grow(kind())
    for number in range(1, len(whole.nodes), 7):
        kept = {node.path: node for node in random.Random(number).sample(whole.nodes[1:], number)}
        # a turn is remembered only after those before it
        kept = {p: n for p, n in kept.items() if all(p[:d] in kept for d in range(1, len(p)))}
        assert grow(kind(), journal=Remembered(kept)) == whole


def test_hidden_randomness_is_a_counted_failure() -> None:
    class Hidden(ReplayedWalk):
        def start(self, task: Task, seed: int) -> Walk:
            return self.opened(Walk(random.Random(), 0))  # not of the seed

    env = Hidden()
    tree = grow(env, policy=FailurePolicy(max_excluded=1.0))
    kinds = [leaf.failure.kind for leaf in tree.leaves() if leaf.failure is not None]
    assert "replay_diverged" in kinds and set(kinds) == {"replay_diverged"}
    assert all(leaf.reward is None for leaf in tree.leaves() if leaf.failure is not None)
    message = next(leaf.failure.message for leaf in tree.leaves() if leaf.failure is not None)
    assert "train-0, turn" in message and "played again" in message
    assert not env.log["open"]


def test_a_replay_that_says_one_character_more_has_diverged() -> None:
    class Wordy(ReplayedWalk):
        def step(self, state: Walk, turn: Turn) -> Reply:
            reply = super().step(state, turn)
            games.add(id(state))
            said = reply.observation and reply.observation + "!" * (len(games) > 1)
            return replace(reply, observation=said)

    games: set[int] = set()
    env, task = Wordy(), Task(id="t", question="Q")
    first = Turn(text="-;")

    async def play() -> None:
        reply = await env.reply(task, [first])
        later = [replace(first, observation=reply.observation), first]
        await env.reply(task, later)  # goes on with the state
        with pytest.raises(ReplayDiverged, match="turn 1"):
            await env.reply(task, later)

    asyncio.run(play())


def test_a_step_that_ends_after_its_tree_leaves_no_state_behind() -> None:
    class Late(WindyWalk):
        async def step(self, state: Walk, turn: Turn) -> Reply:  # type: ignore[override]
            await released.wait()
            return super().step(state, turn)

    async def play() -> None:
        answer = asyncio.ensure_future(env.reply(task, [Turn(text="-;")]))
        await asyncio.sleep(0)
        await env.release(task)
        released.set()
        await answer
        assert not env.log["open"] and env.num_open_states() == 0

    released, env, task = asyncio.Event(), Late(), Task(id="t", question="Q")
    asyncio.run(play())


def test_a_state_is_not_closed_while_it_is_copied() -> None:
    class Slow(WindyWalk):
        async def copy(self, state: Walk) -> Walk:  # type: ignore[override]
            await asyncio.sleep(0.01)
            assert state.serial in self.log["open"], "closed while it was copied"
            return super().copy(state)

    env = Slow(max_live_states=1)
    tree = grow(env, TreeSearch(num_chains=6, num_rounds=1, num_expansions=6))
    assert tree == grow(WindyWalk(), TreeSearch(num_chains=6, num_rounds=1, num_expansions=6))
    assert not env.log["open"]


def test_states_are_closed_when_a_step_raises_or_hangs_or_the_rollout_is_cancelled() -> None:
    class Raises(WindyWalk):
        def step(self, state: Walk, turn: Turn) -> Reply:
            if state.turns == 2:
                raise ValueError("a bug")
            return super().step(state, turn)

    class Hangs(WindyWalk):
        async def step(self, state: Walk, turn: Turn) -> Reply:  # type: ignore[override]
            if state.turns == 1:
                await asyncio.Event().wait()
            return super().step(state, turn)

    for kind in (Raises, Hangs):
        env = kind()
        tree = grow(env, policy=FailurePolicy(reply_deadline_s=0.2, max_excluded=1.0))
        assert any(leaf.failure is not None for leaf in tree.leaves())
        assert not env.log["open"]

    async def cancelled() -> None:
        env = Hangs()
        context = RolloutContext(
            env=env, sampler=PathSampler(wanders), tokenizer=CharTokenizer(), seed=0
        )
        growing = asyncio.ensure_future(SEARCH(context, env.tasks("train")[0], step=1))
        await asyncio.sleep(0.1)
        assert env.log["open"]
        growing.cancel()
        await asyncio.wait([growing])
        await asyncio.sleep(0.1)
        assert not env.log["open"]

    asyncio.run(cancelled())


@pytest.mark.parametrize("kind", [WindyWalk, ReplayedWalk])
def test_a_step_that_failed_and_was_told_did_not_happen(kind: type[WindyWalk]) -> None:
    class Fails(kind):  # type: ignore[misc, valid-type]
        def step(self, state: Walk, turn: Turn) -> Reply:
            if turn.text == "?;":
                state.at += 100  # half of its work is done
                raise ToolTimeout("no answer")
            return super().step(state, turn)

    script = ["+;", "?;", "+;", "-;", "+;", "+;", "+;", "+;"]

    def observations(env: WindyWalk, script: list[str]) -> list[str]:
        context = RolloutContext(
            env=env,
            sampler=PathSampler(lambda p, r: script[min(p.count("["), len(script) - 1)]),
            tokenizer=CharTokenizer(),
            seed=0,
        )
        tree = asyncio.run(Chains(num_chains=2)(context, env.tasks("train")[0], step=1))
        return [n.observation_text for n in tree.nodes[1:] if n.path[0] == 0]

    with_failure = observations(Fails(), script)
    without = observations(kind(), [text for text in script if text != "?;"])
    assert "tool timeout" in with_failure[1]
    assert [text for text in with_failure if "tool timeout" not in text] == without


def test_a_state_that_cannot_be_copied_is_replayed() -> None:
    class Locked(StatefulEnvironment[list[Any]]):
        tasks, messages = WindyWalk.tasks, WindyWalk.messages
        stop_strings = (";",)

        def start(self, task: Task, seed: int) -> list[Any]:
            return [threading.Lock(), Walk(random.Random(seed), 0)]

        def step(self, state: list[Any], turn: Turn) -> Reply:
            return walk.step(state[1], turn)

    walk = WindyWalk()
    walk.log["open"].add(0)
    tree = grow(Locked())  # type: ignore[arg-type]
    assert tree == grow(WindyWalk())


def test_a_turn_that_was_cut_is_played_again_as_one() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Counts(StatefulEnvironment[list[bool]]):
        fork_ways = ("replay",)
        tasks, messages = WindyWalk.tasks, WindyWalk.messages

        def start(self, task: Task, seed: int) -> list[bool]:
            return []

        def step(self, state: list[bool], turn: Turn) -> Reply:
            state.append(turn.truncated)
            if len(state) == 4:
                return Reply(stop="end", reward=0.0)
            return Reply(stop="continue", observation=f"[{state}]")

    env: Any = Counts()
    context = RolloutContext(
        env=env,
        sampler=PathSampler(lambda p, r: ("x" * 9, -(r.seed % 97) / 50)),
        tokenizer=CharTokenizer(),
        seed=0,
    )
    search = TreeSearch(num_chains=2, num_rounds=2, num_expansions=3, max_turn_tokens=4)
    tree = asyncio.run(search(context, env.tasks("train")[0], step=1))
    assert all(leaf.failure is None for leaf in tree.leaves())
    assert all(node.truncated for node in tree.nodes[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_environments_passes(kind: type[WindyWalk]) -> None:
    env = kind()
    check_environment(env, texts=("+;", "-;", "x"), num_tasks=2)
    assert not env.log["open"]


def shared_generator() -> WindyWalk:
    generator = random.Random(0)

    class Shared(WindyWalk):
        """Copies share a generator: a fork moves the others."""

        def copy(self, state: Walk) -> Walk:
            return self.opened(replace(state, rng=generator))

    return Shared()


def forgotten_close() -> WindyWalk:
    class Unseeded(WindyWalk):
        def start(self, task: Task, seed: int) -> Walk:
            return self.opened(Walk(random.Random(), 0))

    return Unseeded()


@pytest.mark.parametrize("make", [shared_generator, forgotten_close])
def test_the_check_of_environments_finds_what_is_not_of_the_seed(make: Any) -> None:
    with pytest.raises(AssertionError, match=r"function of its arguments|played again"):
        check_environment(make(), texts=("+;", "-;", "x"), num_tasks=4)


def test_a_negative_number_of_states_is_refused() -> None:
    with pytest.raises(SpanwiseError, match="max_live_states"):
        WindyWalk(max_live_states=-1)
