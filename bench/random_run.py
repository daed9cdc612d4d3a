"""A run whose checkpoints have every kind of file, over a random model of some thousand weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from spanwise.envs.chain import WORDS
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.models.loading import Model
from spanwise.recipes.chain import sae_chain
from spanwise.toys.base_model import BaseModelRecipe, word_tokenizer
from spanwise.train.config import TrainConfig

SHAPE = BaseModelRecipe(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    head_size=8,
    intermediate_size=32,
)


@dataclass(frozen=True, kw_only=True)
class RandomModel(Model):
    """The same random weights every time, with the words of the chain task."""

    def load_tokenizer(self) -> Any:
        return word_tokenizer(WORDS)

    def load(self, *, head: bool = True) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return SHAPE.new_model(self.load_tokenizer())


def random_run() -> TrainConfig:
    """SAE with a critic of its own and a KL penalty."""
    kl = KLPenalty(coefficient=0.05)
    return replace(sae_chain(), model=RandomModel(), kl=kl)
