"""A task that a random model of width 16 can be trained on in seconds.

The prompt is two letters and a colon. The model writes letters until ``;``. It is right
if the first of them is from the first half of the alphabet of sixteen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spanwise.credit import Advantage, GroupAdvantage, SpanAdvantage
from spanwise.display import Display
from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.learn.critic import Critic, NoCritic, ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.models.lora import add_adapter
from spanwise.partitions import Token
from spanwise.rollout import Chains
from spanwise.run.folder import RunFolder
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.train import TrainConfig, train
from spanwise.train.evaluate import Evaluation
from tests.tiny import tiny_model

SYMBOLS = "abcdefghijklmnop:;"


class LetterTokenizer:
    chat_template = "yes"
    eos_token_id = SYMBOLS.index(";")

    def __len__(self) -> int:
        return len(SYMBOLS)

    def encode(self, text: str, **options: object) -> list[int]:
        return [SYMBOLS.index(c) for c in text]

    def decode(self, token_ids: Sequence[int], **options: object) -> str:
        return "".join(SYMBOLS[t] for t in token_ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **options: object) -> str:
        return messages[0]["content"]

    def save_pretrained(self, folder: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Letters(Environment):
    right_from: str = "abcdefgh"
    scored: bool = True
    """False: every reward is a failure."""

    def tasks(self, split: str) -> list[Task]:
        pairs = [a + b + ":" for a in SYMBOLS[:16] for b in SYMBOLS[:16]]
        return [Task(id=f"{split}-{p}", question=p, answers=("a",)) for p in pairs]

    def messages(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        if not self.scored:
            raise RuntimeError("no judge")
        right = turns[-1].text[0] in self.right_from
        stop = "length" if turns[-1].truncated else "end"
        return Reply(stop=stop, reward=float(right), success=right)


@dataclass(frozen=True, kw_only=True)
class LetterModel(Model):
    def load_tokenizer(self) -> Any:
        return LetterTokenizer()

    def load(self) -> torch.nn.Module:
        model = tiny_model(len(SYMBOLS))
        if self.lora.rank:
            add_adapter(model, self.lora)
        return model


def letters(
    *, critic: Critic | None = None, advantage: Advantage | None = None, **changes: Any
) -> TrainConfig:
    """PPO with SAE and a critic of its own; with ``NoCritic()``, GRPO."""
    if critic is None:
        critic = ValueHead(learning_rate=1e-2, pretraining_steps=0)
    if advantage is None:
        grouped = isinstance(critic, NoCritic)
        advantage = GroupAdvantage() if grouped else SpanAdvantage()
    config = TrainConfig(
        env=Letters(),
        model=LetterModel(),
        sampler=TransformersEngine(),
        rollout=Chains(num_chains=4, max_turn_tokens=6, max_response_tokens=6),
        advantage=advantage,
        critic=critic,
        objective=Objective(
            ratio_spans=Token(), loss_aggregation="token", clip_low=0.2, clip_high=0.28
        ),
        update=Update(learning_rate=1e-2, prompts_per_minibatch=8),
        evaluation=Evaluation(num_tasks=32),
        steps=2,
        prompts_per_step=16,
    )
    return replace(config, **changes)


def run(config: TrainConfig, folder: Path) -> RunFolder:
    return train(config, recipe="letters", folder=folder, display=Display())
