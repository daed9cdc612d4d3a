from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise.envs.base import Task, Turn
from spanwise.rollout import Chains, FailurePolicy, Rollout, RolloutContext, TreeSearch
from spanwise.rollout.tree_search import by_entropy, cycle
from spanwise.samplers.base import EngineError, Request
from spanwise.tree import Node, Path, Tree
from tests.trees import root, turn
from tests.word_game import CharTokenizer, PathSampler, WordGame

TASK = Task(id="task", question="Q:", answers=("win",))


def grow(
    rollout: Rollout,
    sampler: PathSampler,
    env: WordGame | None = None,
    seed: int = 0,
    task: Task = TASK,
) -> Tree:
    context = RolloutContext(
        env=env or WordGame(),
        sampler=sampler,
        tokenizer=CharTokenizer(),
        seed=seed,
        failures=FailurePolicy(backoff_s=0.0),
    )
    return asyncio.run(asyncio.wait_for(rollout(context, task, step=1), timeout=20))


def one_call_then_win(prompt: str, request: Request) -> str:
    return "win;" if "[1]" in prompt else "go;"


def by_seed(prompt: str, request: Request) -> tuple[str, float]:
    """A policy that calls, wins or loses by its seed, with an entropy by its seed."""
    word = ("go", "win", "lose", "go")[request.seed % 4]
    return f"{word}-{request.seed % 1000};", -(request.seed % 97) / 50


@settings(max_examples=40, deadline=None)
@given(
    chains=st.integers(1, 5),
    rounds=st.integers(0, 3),
    expansions=st.integers(0, 5),
    choose=st.sampled_from(["entropy", "random"]),
    seed=st.integers(0, 1000),
)
def test_a_tree_has_exactly_m_plus_lk_different_leaves(
    chains: int, rounds: int, expansions: int, choose: str, seed: int
) -> None:
    search = TreeSearch(
        num_chains=chains, num_rounds=rounds, num_expansions=expansions, choose=choose
    )
    tree = grow(search, PathSampler(by_seed), seed=seed)
    leaves = tree.leaves()
    assert len(leaves) == search.num_leaves == chains + rounds * expansions
    assert len({leaf.path for leaf in leaves}) == len(leaves)
    assert sum(node.expansion is not None for node in tree.nodes) == rounds * expansions


def test_a_fork_is_a_fresh_turn_after_the_same_observation() -> None:
    sampler = PathSampler(one_call_then_win)
    env = WordGame()
    tree = grow(TreeSearch(num_chains=1, num_rounds=1, num_expansions=1), sampler, env)
    assert [n.path for n in tree.nodes] == [(), (0,), (0, 0), (1,), (1, 0)]
    chosen, fresh = tree.node((0,)), tree.node((1,))
    assert fresh.expansion is not None and fresh.expansion.of == chosen.path
    first, second = (r for r in sampler.requests if r.prompt == tree.root.observation)
    assert first.seed != second.seed
    assert env.seen.count("go;") == 2  # once for each turn that calls, none repeated


def test_siblings_share_an_observation_and_its_tool_is_called_once() -> None:
    def two_calls(prompt: str, request: Request) -> tuple[str, float]:
        if "[2]" in prompt:
            return "win;", -0.1
        return ("go;", -2.0) if "[1]" in prompt else ("go;", -0.5)

    env = WordGame()
    sampler = PathSampler(two_calls)
    tree = grow(TreeSearch(num_chains=1, num_rounds=1, num_expansions=1), sampler, env)
    # the second turn has the higher entropy, so its sibling hangs below (0,)
    assert [n.path for n in tree.nodes] == [(), (0,), (0, 0), (0, 0, 0), (0, 1), (0, 1, 0)]
    prefix = tuple(map(ord, "Q:go;[1]"))
    assert [r.prompt for r in sampler.requests].count(prefix) == 2
    assert len(env.seen) == 5  # five turns, five replies: the shared one was not asked again


def test_the_choice_falls_on_entropy_less_the_penalty_for_siblings() -> None:
    def call(*path: int, entropy: float) -> Node:
        return turn(*path, logprobs=-9.0, stop="continue", sampling_logprobs=(-entropy,))

    def answer(*path: int, entropy: float) -> Node:
        return turn(*path, logprobs=-9.0, sampling_logprobs=(-entropy,))

    nodes = [
        root(1),
        call(0, entropy=0.50),  # 2 siblings: 0.50 - 2 α = 0.40
        call(1, entropy=0.55),  # 0.45
        answer(2, entropy=9.0),  # a leaf is no candidate
        call(0, 0, entropy=0.42),  # 1 sibling: 0.37
        answer(0, 1, entropy=9.0),
        call(1, 0, entropy=0.41),  # none: 0.41
        answer(0, 0, 0, entropy=9.0),
        answer(1, 0, 0, entropy=9.0),
    ]
    ranked = by_entropy(nodes, 0.05)
    assert [path for path, _ in ranked] == [(1,), (1, 0), (0,), (0, 0)]
    assert [score for _, score in ranked] == pytest.approx([0.45, 0.41, 0.40, 0.37])
    without_penalty = by_entropy(nodes, 0.0)
    assert [path for path, _ in without_penalty] == [(1,), (0,), (0, 0), (1, 0)]
    assert [path for path, _ in cycle(ranked, 6)] == [
        (1,), (1, 0), (0,), (0, 0), (1,), (1, 0),
    ]  # fmt: skip


def test_without_a_tool_call_the_search_forks_at_the_prompt() -> None:
    tree = grow(
        TreeSearch(num_chains=2, num_rounds=2, num_expansions=2),
        PathSampler(lambda prompt, request: "win;"),
    )
    assert [n.path for n in tree.nodes] == [(), *((i,) for i in range(6))]
    assert [n.expansion.of for n in tree.nodes[3:] if n.expansion] == [()] * 4


def test_random_choice_is_uniform_over_turns_that_called() -> None:
    search = TreeSearch(choose="random")
    nodes = [turn(i, logprobs=-float(i), stop="continue") for i in range(4)]
    counts = [0] * 4
    for seed in range(4000):
        counts[search.rank(nodes, seed)[0][0][0]] += 1
    # 1000 expected each, standard deviation sqrt(4000 * 1/4 * 3/4) = 27
    assert all(abs(count - 1000) < 5 * 27 for count in counts)


def test_random_choice_is_drawn_for_each_prompt() -> None:
    search = TreeSearch(num_chains=4, num_rounds=1, num_expansions=1, choose="random")

    def forked(name: str) -> Path:
        tree = grow(search, PathSampler(one_call_then_win), task=replace(TASK, id=name))
        (expansion,) = (node.expansion for node in tree.nodes if node.expansion)
        return expansion.of

    assert {forked(f"task {i}") for i in range(40)} == {(0,), (1,), (2,), (3,)}


def test_no_rounds_is_the_same_as_chains() -> None:
    tree = grow(TreeSearch(num_chains=3, num_rounds=0), PathSampler(by_seed))
    assert tree == grow(Chains(num_chains=3), PathSampler(by_seed))


def test_the_tree_follows_from_the_seed_not_from_what_ends_first() -> None:
    def shuffled(order: int) -> Tree:
        async def wait(task: Task, turns: Sequence[Turn]) -> None:
            await asyncio.sleep(zlib.crc32(f"{turns[-1].text}{order}".encode()) % 7 / 1000)

        return grow(
            TreeSearch(num_chains=4, num_rounds=2, num_expansions=3),
            PathSampler(by_seed),
            WordGame(before_reply=wait),
        )

    assert shuffled(0) == shuffled(1) == shuffled(2)
    other = grow(TreeSearch(num_chains=4, num_rounds=2), PathSampler(by_seed), seed=1)
    assert other != shuffled(0)


def test_a_slow_tool_holds_up_its_own_branch_alone() -> None:
    others_done = asyncio.Event()
    finished: list[str] = []

    async def wait(task: Task, turns: Sequence[Turn]) -> None:
        text = turns[0].text
        if text == "go-slow;" and len(turns) == 1:
            await others_done.wait()  # never set if the others wait for this branch
        if turns[-1].text == "win;":
            finished.append(text)
            if len(finished) == 3:
                others_done.set()

    starts = iter(["go-slow;", "go-a;", "go-b;", "go-c;"])
    tree = grow(
        Chains(num_chains=4),
        PathSampler(lambda prompt, request: "win;" if "[1]" in prompt else next(starts)),
        WordGame(before_reply=wait),
    )
    assert finished == ["go-a;", "go-b;", "go-c;", "go-slow;"]
    assert all(leaf.reward == 1.0 for leaf in tree.leaves())


def test_sampled_tokens_stand_in_the_next_prompt_as_they_were() -> None:
    sampler = PathSampler(one_call_then_win)
    tree = grow(Chains(num_chains=1), sampler)
    assert sampler.requests[1].prompt == tuple(map(ord, "Q:go;[1]"))
    branch = tree.branch(tree.leaves()[0])
    assert branch.tokens == tuple(map(ord, "Q:go;[1]win;"))
    assert branch.mask == (False,) * 2 + (True,) * 3 + (False,) * 3 + (True,) * 4


def test_engine_faults_and_bad_rewards_leave_a_branch_without_reward() -> None:
    def broken(prompt: str, request: Request) -> str:
        raise EngineError("out of memory")

    leaf = grow(Chains(num_chains=1), PathSampler(broken)).leaves()[0]
    assert leaf.reward is None and leaf.failure is not None
    assert (leaf.stop, leaf.failure.kind) == ("failure", "engine_error")

    leaf = grow(Chains(num_chains=1), PathSampler(lambda p, r: "nan;")).leaves()[0]
    assert leaf.failure is not None and leaf.failure.kind == "reward_nan"
    assert leaf.tokens  # what was sampled stays on record

    async def raises(task: Task, turns: Sequence[Turn]) -> None:
        raise ZeroDivisionError("reward divides by zero")

    env = WordGame(before_reply=raises)
    leaf = grow(Chains(num_chains=1), PathSampler(one_call_then_win), env).leaves()[0]
    assert leaf.failure is not None and "divides by zero" in leaf.failure.message


def test_a_trajectory_ends_at_the_length_limit() -> None:
    always_calls = PathSampler(lambda prompt, request: "go;")
    tree = grow(Chains(num_chains=1, max_response_tokens=20), always_calls)
    # each turn adds "go;" and "[n]", 6 tokens: three make 18, the fourth is cut after 2
    leaf = tree.leaves()[0]
    assert leaf.path == (0, 0, 0, 0) and leaf.stop == "length" and leaf.reward == -1.0
    assert len(tree.branch(leaf).tokens) - len(tree.root.observation) <= 20

    cut = grow(Chains(num_chains=1, max_turn_tokens=2), PathSampler(lambda p, r: "go;"))
    assert cut.leaves()[0].stop == "length" and cut.leaves()[0].text == "go"


def test_refused_settings() -> None:
    with pytest.raises(ValueError, match="num_chains"):
        TreeSearch(num_chains=0)
    with pytest.raises(ValueError, match="num_chains"):
        Chains(num_chains=0)
