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

    From the paper (sections 3 to 5): Qwen3-8B-Base; 512 prompts x 8 rollouts a step at
    temperature 0.6, responses of up to 8,192 tokens; one update a step with all 4,096 of them;
    learning rates of 1e-6 and, for the critic, 1e-5; p = 0.2; γ = 1, and 1 for a right answer at
    its last token; one symmetric clip limit (Eq. 1); no KL penalty, no entropy bonus; a critic
    that is pretrained; 600 steps.

    The loss of Eq. 1 is a plain sum over tokens. Ours is that sum divided by a constant, 8,192
    times the number of rollouts: AdamW takes the same steps on both but for its epsilon, and the
    limit on the gradient's norm sees a smaller gradient. A mean over the batch's tokens is
    further off: its divisor changes from step to step.

    What the paper leaves open, our choice, and why:

    - the clip limit: 0.2, PPO's. With one update a step every ratio is 1, and nothing is clipped;
      for the same reason the clip of the values does nothing.
    - λ at boundaries: 0.95, that of the plain PPO that VAPO (arXiv 2504.05118) compares with.
    - the critic's λ: 1, VAPO's, which the paper follows in pretraining the critic.
    - how long the critic is pretrained, and from which model: 50 batches, as others report VAPO's;
      from a copy of the policy.
    - the temperature of the probability that is compared with p: 1, see ``LowProbability``; the
      side of a boundary: ``start``, see ``spans.by_probability``.
    - whether advantages are whitened: they are, as is usual in PPO.
    - schedule, weight decay and the gradient's norm: a constant rate, none, and at most 1.
    - the temperature of the evaluation: that of training.
    - the form of an answer: that which the rows ask for, a last line ``Answer: ...``, or a box.
    """
    return TrainConfig(
        env=Questions(dataset="BytedTsinghua-SIA/DAPO-Math-17k"),
        model=Model(path="Qwen/Qwen3-8B-Base", dtype="bfloat16"),
        sampler=TransformersEngine(),
        rollout=Chains(
            num_chains=8,
            sampling=Sampling(temperature=0.6),
            max_turn_tokens=8192,
            max_response_tokens=8192,
        ),
        advantage=SpanAdvantage(spans=LowProbability(threshold=0.2)),
        critic=ValueHead(learning_rate=1e-5, pretraining_steps=50),
        objective=Objective(
            ratio_spans=Token(), loss_aggregation=8192, clip_low=0.2, clip_high=0.2
        ),
        update=Update(learning_rate=1e-6, prompts_per_minibatch=512),
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
    base = sae_math()
    return replace(
        base,
        env=ReasoningGym(),
        model=Model(path="Qwen/Qwen3-0.6B", dtype="bfloat16"),
        rollout=replace(base.rollout, max_turn_tokens=1024, max_response_tokens=1024),
        objective=replace(base.objective, loss_aggregation=1024),
        update=replace(base.update, prompts_per_minibatch=64),
        steps=200,
        prompts_per_step=64,
    )
