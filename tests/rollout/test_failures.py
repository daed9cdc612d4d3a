"""What becomes of a failure: by its kind retried, shown, left out or the end of the run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from spanwise.batch import Batch
from spanwise.credit import GroupAdvantage
from spanwise.envs.base import MAX_REWARD, Reply, Task, Turn
from spanwise.rollout import Chains, FailurePolicy, RolloutContext, RunStopped, run_async
from spanwise.rollout.calls import DeadlineExceeded, current_call, with_deadline
from spanwise.runtime.waits import open_waits
from spanwise.samplers.base import Completion, EngineError, Request
from spanwise.tools.base import Tool, ToolCrash, ToolError, ToolTimeout
from spanwise.tools.output import MAX_CHARACTERS
from spanwise.train.metrics import tree_metrics
from spanwise.tree import Node, Tree
from tests.word_game import CharTokenizer, PathSampler, WordGame

Act = Callable[[int], Awaitable[Reply | None]]


@dataclass(frozen=True, kw_only=True)
class Acting(WordGame):
    """Does ``act`` with the number of the ask at the first turn; else a ``WordGame``."""

    act: Act
    asked: list[int] = field(default_factory=list)

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        if len(turns) == 1 and not turns[0].truncated:
            self.asked.append(len(self.asked))
            reply = await self.act(self.asked[-1])
            if reply is not None:
                return reply
        return await super().reply(task, turns)


def raising(*errors: BaseException | None) -> Act:
    """Raises the errors in turn, then the last one for ever; None raises nothing."""

    async def act(number: int) -> None:
        error = errors[min(number, len(errors) - 1)]
        if error is not None:
            raise error

    return act


def replying(**fields: Any) -> Act:
    async def act(number: int) -> Reply:
        return Reply(**fields)

    return act


def go_then_win(prompt: str, request: Request) -> str:
    return "win;" if "]" in prompt else "go;"


def grown(act: Act, write: Any = go_then_win, **policy: Any) -> Tree:
    context = RolloutContext(
        env=Acting(act=act),
        sampler=PathSampler(write),
        tokenizer=CharTokenizer(),
        seed=0,
        failures=FailurePolicy(**{"backoff_s": 0.0, **policy}),
    )
    task = Task(id="task", question="Q:", answers=("win",))
    return run_async(Chains(num_chains=1)(context, task, step=1))


def story(node: Node) -> list[tuple[str, str]]:
    ended = () if node.failure is None else (node.failure,)
    return [(f.kind, f.then) for f in (*node.faults, *ended)]


def test_a_tool_that_fails_once_is_asked_again() -> None:
    tree = grown(raising(ToolError("no route"), None))
    assert story(tree.node((0,))) == [("tool_error", "retried")]
    assert tree.leaves()[0].reward == 1.0 and tree.node((0,)).observation_text == "[1]"
    figures = tree_metrics([tree], None)
    assert (figures["failures"], figures["failures/tool_error"], figures["retries"]) == (1, 1, 1)
    assert figures["excluded"] == 0


@pytest.mark.parametrize(
    ("error", "kind", "attempts"),
    [
        (ToolTimeout("no answer in 2 s"), "tool_timeout", 1),
        (ToolError("no route"), "tool_error", 3),
        (ToolCrash("killed"), "tool_crash", 3),
    ],
)
def test_a_tool_that_fails_for_good_is_told_to_the_model(
    error: ToolError, kind: str, attempts: int
) -> None:
    tree = grown(raising(error))
    node, leaf = tree.node((0,)), tree.leaves()[0]
    assert story(node) == [(kind, "retried")] * (attempts - 1) + [(kind, "shown")]
    assert node.stop == "continue" and node.reward is None
    assert kind.replace("_", " ") in node.observation_text
    assert node.observation == tuple(map(ord, node.observation_text))
    assert leaf.path == (0, 0) and leaf.reward == 1.0


def test_what_is_not_shown_is_left_out() -> None:
    leaf = grown(raising(ToolError("no route")), retries=0, show=()).leaves()[0]
    assert story(leaf) == [("tool_error", "excluded")] and leaf.reward is None


def test_one_failing_branch_leaves_its_siblings_alone() -> None:
    numbers = iter(range(4))

    async def act(number: int) -> None:
        if next(numbers) == 1:
            raise asyncio.CancelledError  # a task that cancels itself, as its own library might

    context = RolloutContext(
        env=Acting(act=act), sampler=PathSampler(go_then_win), tokenizer=CharTokenizer(), seed=0
    )
    task = Task(id="task", question="Q:", answers=("win",))
    leaves = run_async(Chains(num_chains=4)(context, task, step=1)).leaves()
    assert [leaf.reward for leaf in leaves] == [1.0, None, 1.0, 1.0]
    assert story(leaves[1]) == [("reward_error", "excluded")]


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (raising(ZeroDivisionError("by\nzero")), "reward_error", "ZeroDivisionError: by zero"),
        (raising(StopIteration()), "reward_error", "StopIteration"),
        (replying(stop="end", reward=float("nan")), "reward_nan", "nan"),
        (replying(stop="end", reward=float("inf")), "reward_nan", "inf"),
        (replying(stop="end", reward=1.9e19), "reward_nan", "reward of Acting is 1.9e+19"),
        (replying(stop="end", reward=-(10**400)), "reward_nan", "-inf"),
        (replying(stop="end", reward=np.float32("nan")), "reward_nan", "nan"),
        (replying(stop="end", reward="1"), "reward_error", "not str"),
        (replying(stop="end", reward=1j), "reward_error", "not complex"),
        (replying(stop="end", reward=np.ones(1)), "reward_error", "not ndarray"),
        (replying(stop="finished", reward=1.0), "reward_error", "not finished"),
        (replying(stop="prompt", reward=1.0), "reward_error", "not prompt"),
        (replying(stop="failure", failure="down"), "reward_error", "must be a Failure"),
        (replying(stop="end", reward=1.0, outcome=None), "reward_error", "a mapping"),
        (replying(stop="end", reward=1.0, outcome={"f1": math.nan}), "reward_error", "JSON"),
        (replying(stop="end", reward=1.0, outcome={"a": {1, 2}}), "reward_error", "JSON"),
        (replying(stop="continue", observation="\x1b[2J\x07"), "tool_error", "control characters"),
        (replying(stop="continue", observation=b"bytes"), "tool_error", "bytes, not text"),
    ],
)
def test_a_reply_that_cannot_be_trained_on_is_a_failure(act: Act, kind: str, message: str) -> None:
    leaf = grown(act, show=(), retries=0).leaves()[0]
    assert leaf.failure is not None and leaf.reward is None
    assert (leaf.failure.kind, leaf.stop) == (kind, "failure")
    assert message in leaf.failure.message and "\n" not in leaf.failure.message
    assert leaf.tokens  # what was sampled stays on record


@pytest.mark.parametrize(
    "reward",
    [
        1, True, 1e18, np.float32(0.5), np.float16(0.5), np.int64(2), np.bool_(True), np.array(0.5),
        torch.tensor(0.5), torch.tensor(2), Fraction(1, 2), Decimal("0.5"),
    ],
)  # fmt: skip
def test_a_reward_is_any_number_and_kept_as_a_float(reward: Any) -> None:
    act = replying(stop="end", reward=reward, success=np.bool_(True), outcome={"f1": np.float32(1)})
    leaf = grown(act).leaves()[0]
    assert leaf.failure is None
    assert type(leaf.reward) is float and leaf.reward == float(reward)
    assert leaf.success is True and leaf.outcome == {"f1": 1.0}
    assert type(leaf.outcome["f1"]) is float


def test_the_largest_reward_has_a_finite_advantage() -> None:
    for baseline in ("group_normalised", "batch_normalised", "group_mean", "leave_one_out"):
        credit = GroupAdvantage(baseline=baseline)
        nodes = [
            Node(path=(n,), tokens=(1,), engine_logprobs=(-1.0,), stop="end", reward=reward)
            for n, reward in enumerate((MAX_REWARD, -MAX_REWARD, 0.0, MAX_REWARD))
        ]
        root = Node(path=(), observation=(1,), stop="prompt")
        batch = Batch.from_trees([Tree(task_id="t", nodes=(root, *nodes))])
        found = credit(batch)[batch.mask]
        assert found.isfinite().all() and found[0] > 0 > found[1]


def test_ten_megabytes_become_a_short_clean_observation() -> None:
    text = "[\x1b[31m" + "x" * 10_000_000 + "\ud800]"
    tree = grown(replying(stop="continue", observation=text), retries=0)
    node = tree.node((0,))
    assert story(node) == [("overlong_output", "cut")]
    # With a token a character the observation fills the trajectory, which the limit then ends.
    assert node.stop == "length" and tree_metrics([tree], None)["failures/overlong_output"] == 1

    seen: list[str] = []

    def write(prompt: str, request: Request) -> str:
        seen.append(prompt)
        return go_then_win(prompt, request)

    context = RolloutContext(
        env=Acting(act=replying(stop="continue", observation=text)),
        sampler=PathSampler(write),
        tokenizer=CharTokenizer(),
        seed=0,
    )
    chains = Chains(num_chains=1, max_response_tokens=10**6)
    task = Task(id="task", question="Q:", answers=("win",))
    node = run_async(chains(context, task, step=1)).node((0,))
    shown = node.observation_text
    assert len(shown) < MAX_CHARACTERS + 100 and "characters left out" in shown
    assert shown.startswith("[xxx") and shown.endswith("x]") and seen[1].endswith(shown)


def test_an_engine_that_comes_back_leaves_no_trace_in_what_is_sampled() -> None:
    failures = iter([EngineError("dead"), EngineError("dead")])

    def dies(prompt: str, request: Request) -> str:
        if (error := next(failures, None)) is not None:
            raise error
        return f"{'win' if ']' in prompt else 'go'}-{request.seed % 1000};"

    tree = grown(raising(None), dies)
    assert story(tree.node((0,))) == [("engine_error", "retried")] * 2
    clean = grown(raising(None), dies)  # the iterator is spent: nothing fails any more
    assert [n.tokens for n in tree.nodes] == [n.tokens for n in clean.nodes]


@pytest.mark.parametrize("error", [EngineError("dead"), ConnectionError("refused")])
def test_an_engine_that_stays_dead_is_no_reward(error: Exception) -> None:
    def dead(prompt: str, request: Request) -> str:
        raise error

    leaf = grown(raising(None), dead).leaves()[0]
    assert story(leaf) == [("engine_error", "retried")] * 2 + [("engine_error", "excluded")]
    assert leaf.reward is None and not leaf.tokens


def test_log_probs_that_are_not_finite_are_not_trained_on() -> None:
    def poisoned(prompt: str, request: Request) -> tuple[str, float]:
        return "win;", float("nan")

    assert story(grown(raising(None), poisoned, retries=0).leaves()[0]) == [
        ("engine_error", "excluded")
    ]


GOOD = Completion(
    tokens=(1, 2), engine_logprobs=(-1.0, -1.0), sampling_logprobs=(-1.0,) * 2, finish="eos"
)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "NoneType"),
        (
            replace(GOOD, tokens=(), engine_logprobs=(), sampling_logprobs=()),
            "0 tokens, not 1 to 64",
        ),
        (replace(GOOD, tokens=(1,) * 65), "65 tokens, not 1 to 64"),
        (replace(GOOD, engine_logprobs=(-1.0,)), "2 finite log-probs"),
        (replace(GOOD, sampling_logprobs=(-1.0, -math.inf)), "2 finite log-probs"),
    ],
)
def test_what_an_engine_may_not_answer_is_a_failure(answer: Any, message: str) -> None:
    class Odd(PathSampler):
        async def sample(self, request: Request) -> Completion:
            return answer

    failures = FailurePolicy(retries=0)
    context = RolloutContext(
        env=WordGame(), sampler=Odd(go_then_win), tokenizer=CharTokenizer(), seed=0,
        failures=failures,
    )  # fmt: skip
    tree = run_async(Chains(num_chains=1)(context, WordGame().tasks("train")[0], step=1))
    [leaf] = tree.leaves()
    assert story(leaf) == [("engine_error", "excluded")]
    assert leaf.failure is not None and message in leaf.failure.message


@dataclass(frozen=True, kw_only=True)
class Unrenderable(WordGame):
    """Its chat template takes neither the first question nor any observation."""

    def prompt(self, task: Task, tokenizer: Any) -> str:
        if task.id == "train-0":
            raise TypeError("no such role")
        return super().prompt(task, tokenizer)

    def rendered(self, observation: str, tokenizer: Any) -> str:
        raise TypeError("no such role")


def test_what_cannot_be_rendered_is_a_failure_or_names_the_task() -> None:
    context = RolloutContext(
        env=Unrenderable(), sampler=PathSampler(go_then_win), tokenizer=CharTokenizer(), seed=0
    )
    first, second = context.env.tasks("train")[:2]
    leaf = run_async(Chains(num_chains=1)(context, second, step=1)).leaves()[0]
    assert story(leaf) == [("tool_error", "excluded")] and leaf.reward is None
    with pytest.raises(
        RunStopped, match=r"prompt of task train-0 cannot be rendered.*no such role"
    ):
        run_async(Chains(num_chains=1)(context, first, step=1))


def test_deadlines_of_replies_and_of_the_engine() -> None:
    async def hangs(number: int) -> None:
        await asyncio.Event().wait()

    leaf = grown(hangs, reply_deadline_s=0.02).leaves()[0]
    assert story(leaf) == [("reward_timeout", "excluded")]

    class Hanging(PathSampler):
        async def sample(self, request: Request) -> Completion:
            await asyncio.Event().wait()
            raise AssertionError

    context = RolloutContext(
        env=WordGame(),
        sampler=Hanging(go_then_win),
        tokenizer=CharTokenizer(),
        seed=0,
        failures=FailurePolicy(engine_deadline_s=0.02),
    )
    task = Task(id="task", question="Q:", answers=("win",))
    leaf = run_async(Chains(num_chains=1)(context, task, step=1)).leaves()[0]
    assert story(leaf) == [("engine_timeout", "excluded")]


def test_a_coroutine_that_ignores_its_cancellation_is_left_behind() -> None:
    ended: list[bool] = []

    async def stubborn() -> None:
        for _ in range(20):
            try:
                await asyncio.sleep(3)
            except asyncio.CancelledError:
                continue
        ended.append(True)

    async def main() -> str:
        with pytest.raises(DeadlineExceeded):
            await with_deadline(stubborn(), 0.02)
        return "went on"

    assert run_async(main()) == "went on"
    assert not ended  # nor waited for at the end


def test_an_environment_that_goes_on_after_the_limit_ends_there() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Endless(WordGame):
        async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
            return Reply(stop="continue", observation="x" * 300)

    context = RolloutContext(
        env=Endless(), sampler=PathSampler(go_then_win), tokenizer=CharTokenizer(), seed=0
    )
    task = Task(id="task", question="Q:", answers=("win",))
    leaf = run_async(Chains(num_chains=1)(context, task, step=1)).leaves()[0]
    assert story(leaf) == [("length_limit", "excluded")]


def test_a_call_knows_for_whom_it_is_made_and_stands_among_the_open_ones() -> None:
    seen: list[tuple[str, bool]] = []

    async def act(number: int) -> None:
        call = current_call()
        seen.append((str(call), call in [wait.what for wait in open_waits()]))
        if number == 0:
            raise ToolError("again")

    grown(act)
    name = "the environment, step 1, task task, node 0"
    assert seen == [(name, True), (f"{name}, attempt 2", True)]
    assert current_call() is None and open_waits() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": -1}, "retries"),
        ({"max_excluded": 1.5}, "max_excluded"),
        ({"engine_deadline_s": 0.0}, "positive"),
    ],
)
def test_refused_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FailurePolicy(**options)


def test_a_cut_turn_is_known_as_such_whatever_the_environment_says() -> None:
    class Unaware(WordGame):
        async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
            return Reply(stop="end", reward=0.5)

    context = RolloutContext(
        env=Unaware(), sampler=PathSampler(go_then_win), tokenizer=CharTokenizer(), seed=0
    )
    task = Task(id="task", question="Q:", answers=("win",))
    for limit, stop in ((2, "length"), (20, "end")):
        tree = run_async(Chains(num_chains=1, max_turn_tokens=limit)(context, task, step=1))
        assert (tree.leaves()[0].stop, tree.leaves()[0].reward) == (stop, 0.5)


def test_a_tool_that_is_down_stops_the_run_and_a_flaky_one_does_not() -> None:
    def tree(failing: bool) -> Tree:
        return grown(raising(ToolError("no route") if failing else None), retries=0)

    FailurePolicy().check([tree(True) for _ in range(19)])  # too few to tell
    FailurePolicy().check([tree(number % 2 == 0) for number in range(20)])
    with pytest.raises(RunStopped, match=r"20 of 20 tool calls .*20 tool_error \(.*no route\)"):
        FailurePolicy().check([tree(True) for _ in range(20)])


def test_a_failure_names_the_users_line_and_a_stop_what_caused_it() -> None:
    """Of several tasks that fail at once, the first exception of the commonest kind."""
    raised: list[Exception] = []

    def look(word: str) -> Any:
        return {"win": 1}[word]

    async def fail(task: Task, turns: Sequence[Turn]) -> None:
        try:
            if task.id == "train-0":
                raise ToolError("no route")
            look(task.id)
        except Exception as error:
            raised.append(error)
            raise

    context = RolloutContext(
        env=WordGame(before_reply=fail), sampler=PathSampler(go_then_win),
        tokenizer=CharTokenizer(), seed=0, failures=FailurePolicy(show=(), retries=0),
    )  # fmt: skip

    async def rollouts(chains: Chains) -> list[Tree]:
        tasks = context.env.tasks("train")[:3]
        return list(await asyncio.gather(*(chains(context, task, step=1) for task in tasks)))

    trees = run_async(rollouts(Chains(num_chains=2)))
    messages = [leaf.failure.message for tree in trees for leaf in tree.leaves() if leaf.failure]
    line = look.__code__.co_firstlineno + 1
    wanted = [f"KeyError: 'train-{n}' (test_failures.py:{line} in look)" for n in (1, 1, 2, 2)]
    assert messages == ["no route"] * 2 + wanted
    with pytest.raises(RunStopped, match=r"4 reward_error \(KeyError: 'train-1' \(test") as stopped:
        context.check(trees)
    assert stopped.value.__cause__ in raised and str(stopped.value.__cause__) == "'train-1'"
    with pytest.raises(RunStopped) as stopped:  # another step's exceptions are not kept
        context.check(trees)
    assert stopped.value.__cause__ is None


def test_a_tool_that_raises_is_a_failure_with_the_line_in_the_tool() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Buggy(Tool):
        deadline_s: float = 5.0

        def call(self, query: str) -> Any:
            raise LookupError(query)

    async def act(number: int) -> None:
        await Buggy()("where")

    leaf = grown(act, show=(), retries=0).leaves()[0]
    assert leaf.failure is not None and leaf.failure.message == (
        "Buggy raised LookupError('where') "
        f"(test_failures.py:{Buggy.call.__code__.co_firstlineno + 1} in call)"
    )


def test_what_a_rollout_raises_stays_the_cause_it_was_raised_from() -> None:
    """Also out of a group of tasks."""
    context = RolloutContext(
        env=Unrenderable(), sampler=PathSampler(go_then_win), tokenizer=CharTokenizer(), seed=0
    )

    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(Chains(num_chains=1)(context, context.env.tasks("train")[0], step=1))

    with pytest.raises(RunStopped, match=r"TypeError: no such role \(test_failures.py") as stopped:
        run_async(grouped())
    assert isinstance(stopped.value.__cause__, TypeError) and stopped.value.__context__ is not None
