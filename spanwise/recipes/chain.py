"""Chains of sums: SAE and what it is compared with, on one embedded task in minutes."""

from __future__ import annotations

from dataclasses import replace

from spanwise.credit import GroupAdvantage, SpanAdvantage
from spanwise.envs.chain import ChainSums
from spanwise.learn.critic import NoCritic, ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import Overlong
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import LowProbability, Token, Trajectory
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


def sae_end_chain() -> TrainConfig:
    """SAE with the boundary after the unlikely token: the paper's indices to the letter."""
    spans = LowProbability(threshold=0.2, side="end")
    return replace(sae_chain(), advantage=SpanAdvantage(spans=spans))


def gae_chain() -> TrainConfig:
    """The same with the critic trusted at every token: GAE, λ = 0.95."""
    return replace(sae_chain(), advantage=SpanAdvantage(spans=Token()))


def vapo_chain() -> TrainConfig:
    """GAE with VAPO's λ = 1 - 1 / (0.05 length): arXiv 2504.05118."""
    advantage = SpanAdvantage(spans=Token(), length_alpha=0.05)
    return replace(sae_chain(), advantage=advantage)


def adaptive_gae_chain() -> TrainConfig:
    """GAE with λ = 1 - 1 / (0.2 length): "adaptive λ" as SAE's Table 1 compares it."""
    advantage = SpanAdvantage(spans=Token(), length_alpha=0.2)
    return replace(sae_chain(), advantage=advantage)


def sae_ratio_chain() -> TrainConfig:
    """SAE with the policy ratio, too, over its segments: no paper's, one choice of two."""
    base = sae_chain()
    objective = replace(base.objective, ratio_spans=LowProbability(threshold=0.2))
    return replace(base, objective=objective)


def grpo_chain() -> TrainConfig:
    """GRPO on the same task, model and number of rollouts, without a critic."""
    return replace(sae_chain(), advantage=GroupAdvantage(), critic=NoCritic())


def dapo_chain() -> TrainConfig:
    """GRPO with what DAPO adds (arXiv 2503.14476): clip-higher, a mean over tokens, groups
    without signal replaced by others, a penalty on answers that come near the limit.
    """
    return replace(grpo_chain(), dynamic_sampling_rounds=2, overlong=Overlong(penalty_tokens=16))


def dr_grpo_chain() -> TrainConfig:
    """Dr. GRPO (arXiv 2503.20783): no division by the group's deviation or the row's length."""
    base = grpo_chain()
    return replace(
        base,
        advantage=GroupAdvantage(baseline="group_mean"),
        objective=replace(base.objective, loss_aggregation=128, clip_high=0.2),
    )


def rloo_chain() -> TrainConfig:
    """RLOO (arXiv 2402.14740): each rollout against the mean of its siblings."""
    return replace(grpo_chain(), advantage=GroupAdvantage(baseline="leave_one_out"))


def reinforce_chain() -> TrainConfig:
    """REINFORCE++-baseline (arXiv 2501.03262): group's mean, deviation of what is left of all."""
    return replace(grpo_chain(), advantage=GroupAdvantage(baseline="batch_normalised"))


def reinforce_plain_chain() -> TrainConfig:
    """REINFORCE++ without groups (arXiv 2501.03262): returns whitened over the batch's tokens."""
    return replace(grpo_chain(), advantage=GroupAdvantage(baseline="batch_whitened"))


def lite_ppo_chain() -> TrainConfig:
    """Lite PPO (arXiv 2508.08221): the group's mean, the batch's deviation, a mean over tokens."""
    return replace(grpo_chain(), advantage=GroupAdvantage(baseline="batch_scaled"))


def opo_chain() -> TrainConfig:
    """OPO (arXiv 2505.23585): a baseline that weighs by length, and one exact on-policy update."""
    base = grpo_chain()
    return replace(
        base,
        advantage=GroupAdvantage(baseline="length_weighted"),
        update=replace(base.update, prompts_per_minibatch=base.prompts_per_step),
    )


def cispo_chain() -> TrainConfig:
    """CISPO (arXiv 2506.13585): the ratio is a weight of at most 5; no token is cut."""
    base = grpo_chain()
    objective = replace(base.objective, clip="detached", clip_low=1.0, clip_high=4.0)
    return replace(base, objective=objective)


def sapo_chain() -> TrainConfig:
    """SAPO (arXiv 2511.20347): gradients that fade with the distance from 1; τ 1 and 1.05."""
    objective = Objective(ratio_spans=Token(), clip="soft", clip_low=1 / 1.05, clip_high=1.0)
    return replace(grpo_chain(), objective=objective)


def gpg_chain() -> TrainConfig:
    """GPG (arXiv 2504.02546): plain policy gradient, -A log p, of prompts that have a signal."""
    base = grpo_chain()
    return replace(
        base,
        advantage=GroupAdvantage(baseline="group_mean"),
        objective=replace(base.objective, clip="detached", clip_low=0.0, clip_high=0.0),
        dynamic_sampling_rounds=2,
    )


def gspo_chain() -> TrainConfig:
    """GSPO (arXiv 2507.18071): one policy ratio for the whole answer, clipped as published."""
    objective = Objective(ratio_spans=Trajectory(), clip_low=3e-4, clip_high=4e-4)
    return replace(grpo_chain(), objective=objective)


def luspo_chain() -> TrainConfig:
    """LUSPO (arXiv 2602.05261): GSPO whose sum over an answer is not divided by its length."""
    base = gspo_chain()
    return replace(base, objective=replace(base.objective, loss_aggregation=128))
