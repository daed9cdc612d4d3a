"""Where a turn ends: all that was drawn is kept, and the environment reads it to the stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.rollout import Chains, RolloutContext
from spanwise.samplers.base import Completion, Request, Sampler
from spanwise.samplers.scripted import ScriptedSampler
from tests.envs.chat_templates import HERMES, byte_tokenizer

PIECES = ["Q", "say", " 7", "</answer", "><", ">", ">.\n", "<eos>", " </answer>", " ."]


class Pieces:
    """Tokens that hold more than the end of a stop string, as in common vocabularies."""

    eos_token_id = PIECES.index("<eos>")

    def encode(self, text: str, **options: Any) -> list[int]:
        return [PIECES.index(text)]

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        text = "".join(PIECES[i] for i in ids)
        tidies = options.get("clean_up_tokenization_spaces", True)  # as some tokenizers do
        return text.replace(" .", ".") if tidies else text

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return messages[0]["content"]


@dataclass(frozen=True, kw_only=True)
class Reads(Environment):
    """Remembers what it reads; a turn goes on once."""

    stop_strings: tuple[str, ...] = ("</answer>", " .")
    read: list[list[str]] = field(default_factory=list)

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=split, question="Q")]

    def messages(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        self.read.append([turn.text for turn in turns])
        if len(turns) == 1 and not turns[0].truncated:
            return Reply(stop="continue", observation="Q")
        return Reply(stop="end", reward=1.0)


@dataclass
class Fixed(Sampler):
    tokens: tuple[int, ...]
    finish: Literal["stop", "eos", "length"]

    async def sample(self, request: Request) -> Completion:
        zeros = (0.0,) * len(self.tokens)
        return Completion(
            tokens=self.tokens, engine_logprobs=zeros, sampling_logprobs=zeros, finish=self.finish
        )

    def update_weights(self, model: Any) -> None: ...


@pytest.mark.parametrize(
    ("pieces", "finish", "read"),
    [
        (["say", "</answer", "><"], "stop", "say</answer>"),
        (["say", "</answer", ">.\n"], "stop", "say</answer>"),
        (["say", "</answer", ">"], "stop", "say</answer>"),
        (["say", " ."], "stop", "say ."),
        (
            ["</answer", ">", "say", "</answer", "><"],
            "stop",
            "</answer>say</answer",
        ),  # an engine that ran on
        (["say", "<eos>"], "eos", "say"),
        (["<eos>"], "eos", ""),
        (["say", " 7"], "eos", "say 7"),  # no end token: what a scripted turn ends with
        (["<eos>", "say"], "length", "<eos>say"),
    ],
)
def test_a_turn_is_read_up_to_its_stop_and_kept_as_it_was_drawn(
    pieces: list[str], finish: Any, read: str
) -> None:
    env, tokens = Reads(), tuple(map(PIECES.index, pieces))
    context = RolloutContext(env=env, sampler=Fixed(tokens, finish), tokenizer=Pieces(), seed=0)
    tree = asyncio.run(Chains(num_chains=1)(context, env.tasks("train")[0], step=1))
    turns = tree.nodes[1:]
    assert all(turn.tokens == tokens for turn in turns)
    assert all(turn.text == read for turn in turns)
    assert env.read == [[read] * n for n in range(1, len(turns) + 1)]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_start|>"])
def test_end_tokens_of_a_chat_are_not_read(end: str) -> None:
    env, tokenizer = Reads(stop_strings=()), byte_tokenizer(HERMES)
    sampler = ScriptedSampler(lambda *_: f"It is 7 {end}", tokenizer)
    context = RolloutContext(env=env, sampler=sampler, tokenizer=tokenizer, seed=0)
    node = asyncio.run(Chains(num_chains=1)(context, env.tasks("train")[0], step=1)).node((0,))
    assert env.read[0] == ["It is 7 "] and tokenizer.decode(node.tokens).endswith(end)
