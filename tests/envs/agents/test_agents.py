from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spanwise.cli.options import configured
from spanwise.display import Display
from spanwise.envs.agents import PlainEnvironment, ToolChat, environment_of, tool_of
from spanwise.envs.agents.calls import ToolCall, answer_in, calls_in
from spanwise.envs.agents.tools import AgentTool, result_text
from spanwise.envs.base import Split, Task, Turn
from spanwise.errors import SpanwiseError
from spanwise.rollout import RolloutContext, TreeSearch
from spanwise.samplers.base import Request
from spanwise.samplers.scripted import ScriptedSampler
from spanwise.testing import check_environment
from spanwise.tools.base import ToolError, ToolTimeout
from spanwise.train.loop import train
from spanwise.tree import Tree
from tests.envs.agents.till import Till, call
from tests.envs.chat_templates import HERMES, NO_TOOLS, byte_tokenizer
from tests.tiny import qwen3


def replies(env: Any, *texts: str, task: Task | None = None) -> list[Any]:
    """The replies along one trajectory."""

    async def play() -> list[Any]:
        given: list[Turn] = []
        found: list[Any] = []
        for text in texts:
            reply = await env.reply(task or env.tasks("train")[2], [*given, Turn(text=text)])
            given.append(Turn(text=text, observation=reply.observation, outcome=reply.outcome))
            found.append(reply)
        await env.release(task or env.tasks("train")[2])
        assert env.num_open_states() == 0
        return found

    return asyncio.run(play())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<tool_call> add 3 </tool_call>", "not JSON"),
        ("<tool_call> {} ", "tags"),
        ("</tool_call>", "tags"),
        ("<tool_call> [1] </tool_call>", "not an object with a name"),
        ('<tool_call> {"name": 3} </tool_call>', "not an object with a name"),
        ('<tool_call> {"name": "add", "arguments": [3]} </tool_call>', "not an object"),
        ('<tool_call> {"name": "a", "name": "b"} </tool_call>', "given twice"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not JSON"),
        ("<tool_response> 3 </tool_response>", "tags"),
    ],
)
def test_what_cannot_be_read_is_a_call_with_a_fault(text: str, fault: str) -> None:
    (found,) = calls_in(text)
    assert fault in found.fault


def test_calls_are_read_in_order_and_thoughts_are_not() -> None:
    text = f"<think> {call('no')} </think> first {call('a', x=1)} and {call('b')}<|im_end|>"
    assert calls_in(text) == (ToolCall("a", {"x": 1}), ToolCall("b", {}))
    as_string = '<tool_call> {"name": "a", "arguments": "{\\"x\\": 1}"} </tool_call>'
    assert calls_in(as_string) == (ToolCall("a", {"x": 1}),)
    assert calls_in("the answer") == ()
    assert answer_in("<think> so </think> the answer </s>") == "the answer"


def test_arguments_are_checked_against_the_signature() -> None:
    def find(name: str, exact: bool = False, near: list[int] | None = None) -> str:
        """Find.

        Args:
            name: Whom.
            exact: As it stands.
            near: Where.
        """
        return name

    tool = tool_of(find)
    assert tool.fault(ToolCall("find", {"name": "Ada"})) == ""
    assert tool.fault(ToolCall("find", {"name": "Ada", "near": None, "exact": True})) == ""
    for wrong in ({}, {"name": 3}, {"name": "Ada", "age": 3}, {"name": "Ada", "near": ["x"]}):
        assert tool.fault(ToolCall("find", wrong)).startswith("find: ")


def test_a_function_without_hints_or_words_is_no_tool() -> None:
    def bare(x):  # type: ignore[no-untyped-def]
        return x

    with pytest.raises(SpanwiseError, match="bare cannot be a tool"):
        tool_of(bare)


def test_functions_run_before_their_deadline_and_say_what_they_raise() -> None:
    def slow() -> str:
        """Sleep."""
        time.sleep(5)
        return ""

    async def hangs() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    def broken() -> str:
        """Break."""
        raise KeyError("x")

    for function in (slow, hangs):
        with pytest.raises(ToolTimeout, match=r"0\.05 s"):
            asyncio.run(tool_of(function, deadline_s=0.05)({}))
    with pytest.raises(ToolError, match="broken raised KeyError"):
        asyncio.run(tool_of(broken)({}))
    assert result_text(["é", 1]) == '["é", 1]'


@dataclass(frozen=True, kw_only=True)
class Desk(ToolChat[None]):
    """Two tools that hold nothing; the answer is their sum."""

    def tasks(self, split: Split) -> Sequence[Task]:
        return [Task(id=f"{split}-{n}", question=f"{n} and {n}?") for n in range(4)]

    def begin(self, task: Task, seed: int) -> None:
        return None

    def tools(self, inner: object) -> Sequence[AgentTool]:
        met = asyncio.Event()

        async def meet() -> str:
            """Wait for the other."""
            met.set()
            return "met"

        async def wait() -> str:
            """Wait to be met."""
            await met.wait()
            return "waited"

        return [tool_of(meet, deadline_s=2.0), tool_of(wait, deadline_s=2.0)]

    def score(self, inner: object, task: Task, answer: str | None) -> float:
        return float(answer == "4")

    def opening(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]


def test_calls_of_one_turn_run_side_by_side_and_are_answered_in_order() -> None:
    first, last = replies(Desk(), call("wait") + call("meet"), "4<|im_end|>")
    assert first.observation == "waited\nmet" and first.outcome == {"calls": 2, "wrong_calls": 0}
    assert (last.stop, last.reward, last.label) == ("end", 1.0, "answer 4")


def test_limits_end_a_chat_without_an_answer() -> None:
    assert replies(Desk(max_turns=1), call("meet"), call("meet"))[1].stop == "budget"

    async def cut() -> Any:
        return await Desk().reply(Desk().tasks("train")[2], [Turn(text="4", truncated=True)])

    reply = asyncio.run(cut())
    assert (reply.stop, reply.reward) == ("length", 0.0)


def test_a_plain_class_is_an_environment() -> None:
    env = environment_of(Till)()
    assert env.messages(env.tasks("train")[2]) == [
        {"role": "user", "content": "Put 3 into the till.\nIt is empty."}
    ]
    first, second, last = replies(env, call("add", amount=1), call("add", amount=2), "done")
    assert (first.observation, second.observation) == ("1 in the till", "3 in the till")
    assert (last.stop, last.reward) == ("end", 1.0)
    assert [r.observation for r in replies(env, call("take", amount=1))] == [
        "there is no tool 'take'; there are add"
    ]
    wrong = replies(env, call("add", amount="much"))[0]
    assert "amount" in wrong.observation or "much" in wrong.observation
    assert wrong.outcome == {"calls": 1, "wrong_calls": 1}
    check_environment(env, texts=(call("add", amount=1), "words", call("add")), num_tasks=2)


def grown(env: PlainEnvironment, rollout: Any) -> Tree:
    tokenizer = byte_tokenizer(HERMES)
    env.check(tokenizer)

    def script(prompt: str, request: Request) -> str:
        turns = prompt.count("<tool_response>")
        return call("add", amount=request.seed % 3) if turns < 2 else "done<|im_end|>"

    context = RolloutContext(
        env=env, sampler=ScriptedSampler(script, tokenizer), tokenizer=tokenizer, seed=0
    )
    return asyncio.run(rollout(context, env.tasks("train")[2], step=1))


def test_tree_search_forks_objects_and_each_branch_has_its_own() -> None:
    search = TreeSearch(
        num_chains=3, num_rounds=2, num_expansions=4, max_turn_tokens=200,
        max_response_tokens=5000,
    )  # fmt: skip
    tree = grown(environment_of(Till)(), search)
    rewards = set()
    for branch in tree.branches():
        amounts = [calls_in(node.text)[0].arguments["amount"] for node in branch.turns[:-1]]
        assert branch.leaf.reward == float(sum(amounts) == 3)
        rewards.add(branch.leaf.reward)
    assert len(tree.leaves()) == 11 and len(rewards) == 2


def test_an_object_that_cannot_be_copied_is_replayed() -> None:
    class Locked(Till):
        def reset(self, wanted: int, **row: object) -> str:
            import threading

            self.lock = threading.Lock()
            return super().reset(wanted)

    search = TreeSearch(
        num_chains=2, num_rounds=2, num_expansions=2, max_turn_tokens=200,
        max_response_tokens=5000,
    )  # fmt: skip
    assert grown(environment_of(Locked)(), search) == grown(environment_of(Till)(), search)


def test_answers_rows_of_files_and_columns_reach_the_class(tmp_path: Path) -> None:
    class Asks:
        def reset(self, word: str, seed: int) -> None:
            self.word, self.seed, self.closed = word, seed, False

        def spell(self) -> list[str]:
            """Spell it."""
            return list(self.word)

        async def get_reward(self, answer: str | None) -> float:
            return float(answer == self.word) if answer is not None else -1.0

    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "say it", "word": "ab"}\n', encoding="utf-8")
    env = environment_of(Asks)(train_file=file)
    task = env.tasks("train")[0]
    spelt, said = replies(env, call("spell"), "<think> a </think> ab", task=task)
    assert (spelt.observation, said.reward) == ('["a", "b"]', 1.0)
    with pytest.raises(SpanwiseError, match="no test rows: set test_file"):
        env.tasks("test")
    file.write_text('{"word": "ab"}\n', encoding="utf-8")
    with pytest.raises(SpanwiseError, match="train row 1: none of the columns prompt, question"):
        environment_of(Asks)(train_file=file).tasks("train")


def test_what_the_class_lacks_is_said() -> None:
    class NoReward:
        def reset(self) -> None: ...

    with pytest.raises(SpanwiseError, match="NoReward needs a method get_reward"):
        environment_of(NoReward)

    class NoTools(Till):
        add = None  # type: ignore[assignment]

    with pytest.raises(SpanwiseError, match="needs tools"):
        environment_of(NoTools)().check(byte_tokenizer(HERMES))
    with pytest.raises(SpanwiseError, match="does not tell the model of tools"):
        environment_of(Till)().check(byte_tokenizer(NO_TOOLS))


def test_a_plain_class_is_named_on_the_command_line(tmp_path: Path) -> None:
    file = Path(__file__).with_name("till.py")
    env: Any = configured("grpo_chain", ["--env", f"{file}:Till", "--env.max-turns", "3"]).env
    assert isinstance(env, PlainEnvironment) and type(env).__name__ == "Till"
    assert env.max_turns == 3
    with pytest.raises(SpanwiseError, match="needs a method reset"):
        configured("grpo_chain", ["--env", "collections:Counter"])


class Vowels:
    """Whoever answers with few letters e is paid: a model of random weights can learn it."""

    @staticmethod
    def rows(split: str) -> list[dict[str, str]]:
        return [{"prompt": f"{split} {n}"} for n in range(8)]

    def reset(self) -> None:
        self.calls = 0

    def spell(self, word: str) -> str:
        """Spell a word.

        Args:
            word: Any.
        """
        self.calls += 1
        return "-".join(word)

    def get_reward(self, answer: str | None) -> float:
        return self.calls - 0.1 * (answer or "").count("e") - 0.01 * len(answer or "")


def test_at2po_trains_on_a_plain_class(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(HERMES)
    tokenizer.save_pretrained(tmp_path / "model")
    qwen3(len(tokenizer), max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    options = {
        "steps": 2,
        "prompts-per-step": 2,
        "update.prompts-per-minibatch": 2,
        "evaluation.num-tasks": 2,
        "rollout.num-chains": 3,
        "rollout.num-expansions": 1,
        "rollout.max-turn-tokens": 200,
        "rollout.max-response-tokens": 400,
        "model.path": tmp_path / "model",
        "env": f"{__file__}:Vowels",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    config = configured("at2po_search", words)
    log = train(config, recipe="at2po_search", folder=tmp_path / "run", display=Display())
    metrics = [json.loads(line) for line in (log.folder / "metrics.jsonl").open()]
    assert len(metrics) == 2 and all(line["gradient_norm"] > 0 for line in metrics)
