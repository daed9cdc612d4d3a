"""Chains of sums: SAE and what it is compared with, on one embedded task in minutes."""

from __future__ import annotations

from dataclasses import replace

from spanwise.credit import GroupAdvantage, SpanAdvantage
from spanwise.envs.chain import ChainSums
from spanwise.learn.critic import NoCritic, ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import LowProbability, Token
from spanwise.rollout.chains import Chains
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.train.config import TrainConfig
from spanwise.train.evaluate import Evaluation


def sae_chain() -> TrainConfig:
    """PPO with Segmental Advantage Estimation: arXiv 2601.07320, p = 0.2."""
    return TrainConfig(
        env=ChainSums(),
        model=Model(path="chain_base"),
        sampler=TransformersEngine(),
        rollout=Chains(num_chains=8, max_turn_tokens=128, max_response_tokens=128),
        advantage=SpanAdvantage(spans=LowProbability(threshold=0.2)),
        critic=ValueHead(reads_surprise=True, learning_rate=1e-3, pretraining_steps=12),
        objective=Objective(
            ratio_spans=Token(), loss_aggregation="token", clip_low=0.2, clip_high=0.28
        ),
        update=Update(learning_rate=1e-4, prompts_per_minibatch=8),
        evaluation=Evaluation(group_by="length"),
        steps=32,
        prompts_per_step=16,
    )


def gae_chain() -> TrainConfig:
    """The same with the critic trusted at every token: GAE, λ = 0.95."""
    return replace(sae_chain(), advantage=SpanAdvantage(spans=Token()))


def vapo_chain() -> TrainConfig:
    """GAE with VAPO's λ = 1 - 1 / (0.05 length): arXiv 2504.05118."""
    advantage = SpanAdvantage(spans=Token(), length_alpha=0.05)
    return replace(sae_chain(), advantage=advantage)


def grpo_chain() -> TrainConfig:
    """GRPO on the same task, model and number of rollouts, without a critic."""
    return replace(sae_chain(), advantage=GroupAdvantage(), critic=NoCritic())
