"""Competition mathematics with SAE, as published."""

from __future__ import annotations

from spanwise.credit import Segments, SpanAdvantage
from spanwise.envs.questions import Questions
from spanwise.models.loading import Model
from spanwise.rollout.chains import Chains
from spanwise.samplers.base import Sampling
from spanwise.samplers.transformers import TransformersEngine
from spanwise.train.config import TrainConfig
from spanwise.train.critic import ValueHead
from spanwise.train.evaluate import Evaluation
from spanwise.train.objective import Objective
from spanwise.train.update import Update


def sae_math() -> TrainConfig:
    """SAE as published: arXiv 2601.07320, on DAPO-Math-17k with 512 prompts x 8 rollouts.

    p = 0.2, γ = 1, responses of up to 8,192 tokens, evaluation at temperature 0.6, no KL
    penalty, no entropy bonus. The paper does not state λ, learning rates, clip limits or
    minibatches; those here are VAPO's (arXiv 2504.05118). For a GPU, with files of your
    own: see ``Questions``.
    """
    return TrainConfig(
        env=Questions(dataset="BytedTsinghua-SIA/DAPO-Math-17k"),
        model=Model(path="Qwen/Qwen3-8B-Base", dtype="bfloat16"),
        sampler=TransformersEngine(),
        rollout=Chains(num_chains=8, max_turn_tokens=8192, max_response_tokens=8192),
        advantage=SpanAdvantage(segments=Segments(by="probability", threshold=0.2)),
        critic=ValueHead(learning_rate=2e-6, pretraining_steps=50),
        objective=Objective(ratio_span="token", average="token", clip_low=0.2, clip_high=0.28),
        update=Update(learning_rate=1e-6, prompts_per_minibatch=32),
        evaluation=Evaluation(sampling=Sampling(temperature=0.6)),
        steps=200,
        prompts_per_step=512,
    )
