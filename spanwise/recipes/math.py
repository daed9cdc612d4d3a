"""SAE on competition mathematics, as published, and on generated tasks of reasoning-gym."""

from __future__ import annotations

from dataclasses import replace

from spanwise.credit import SpanAdvantage
from spanwise.envs.math.questions import Questions
from spanwise.envs.math.reasoning_gym import ReasoningGym
from spanwise.learn.critic import ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import LowProbability, Token
from spanwise.rollout.chains import Chains
from spanwise.samplers.base import Sampling
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.train.config import TrainConfig
from spanwise.train.evaluate import Evaluation


def sae_math() -> TrainConfig:
    """SAE as published: arXiv 2601.07320, on DAPO-Math-17k. For a GPU, with files of your own.

    From the paper: Qwen3-8B-Base, 512 prompts x 8 rollouts, responses of up to 8,192 tokens,
    p = 0.2, γ = 1, a critic that is pretrained, no KL penalty, no entropy bonus, evaluation at
    temperature 0.6. The 600 steps are from a reader's notes on it.

    What it leaves open is taken from the work that it builds on. VAPO (arXiv 2504.05118), as
    others report it: learning rates of 1e-6 and, for the critic, 2e-6; 50 batches of value
    pretraining; λ = 1 for the critic's targets; 0.2 and 0.28 as clip limits; a mean over the
    batch's tokens.
    DAPO (arXiv 2503.14476), with the same policy's rate and limits: 512 trajectories a
    minibatch, here 64 prompts.

    Nobody states the clip of the values, or SAE's λ: 0.95 is that of VAPO's plain PPO.
    Unlike theirs, the learning rate has no warm-up (DAPO: 20 steps), and the critic starts
    from the policy, where VAPO's starts from a reward model.
    """
    return TrainConfig(
        env=Questions(dataset="BytedTsinghua-SIA/DAPO-Math-17k"),
        model=Model(path="Qwen/Qwen3-8B-Base", dtype="bfloat16"),
        sampler=TransformersEngine(),
        rollout=Chains(num_chains=8, max_turn_tokens=8192, max_response_tokens=8192),
        advantage=SpanAdvantage(spans=LowProbability(threshold=0.2)),
        critic=ValueHead(learning_rate=2e-6, pretraining_steps=50),
        objective=Objective(
            ratio_spans=Token(), loss_aggregation="token", clip_low=0.2, clip_high=0.28
        ),
        update=Update(learning_rate=1e-6, prompts_per_minibatch=64),
        evaluation=Evaluation(sampling=Sampling(temperature=0.6)),
        steps=600,
        prompts_per_step=512,
        keep_trees_every=50,
    )


def sae_gym() -> TrainConfig:
    """SAE on any task of reasoning-gym by name: ``--env.task countdown``. For a GPU.

    The settings of ``sae_math``, but for a smaller model and batch and shorter answers; nothing
    is published for these tasks.
    """
    return replace(
        sae_math(),
        env=ReasoningGym(),
        model=Model(path="Qwen/Qwen3-0.6B", dtype="bfloat16"),
        rollout=Chains(num_chains=8, max_turn_tokens=1024, max_response_tokens=1024),
        steps=200,
        prompts_per_step=64,
    )
