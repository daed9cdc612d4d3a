"""Search agents: AT²PO and the group baseline, small on the embedded task and as published."""

from __future__ import annotations

from dataclasses import replace

from spanwise.credit import GroupAdvantage, SpanAdvantage, TreeAdvantage
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.envs.search.retrieval_qa import RetrievalQA
from spanwise.learn.critic import ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import Token, Turn
from spanwise.rollout.chains import Chains
from spanwise.rollout.tree_search import TreeSearch
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.train.config import TrainConfig
from spanwise.train.evaluate import Evaluation


def at2po_search() -> TrainConfig:
    """AT²PO on the embedded search task: minutes on two cores."""
    return TrainConfig(
        env=MultiHopSearch(),
        model=Model(path="search_base"),
        sampler=TransformersEngine(),
        rollout=TreeSearch(
            num_chains=4,
            num_rounds=2,
            num_expansions=3,
            max_turn_tokens=48,
            max_response_tokens=320,
        ),
        advantage=TreeAdvantage(),
        update=Update(learning_rate=1e-4, prompts_per_minibatch=4),
        evaluation=Evaluation(group_by="hops"),
        steps=40,
        prompts_per_step=12,
    )


def grpo_search() -> TrainConfig:
    """GRPO on the same task, model and number of trajectories, without a tree."""
    return replace(
        at2po_search(),
        rollout=Chains(num_chains=10, max_turn_tokens=48, max_response_tokens=320),
        advantage=GroupAdvantage(),
        objective=Objective(ratio_spans=Token(), clip_low=0.2, clip_high=0.28),
    )


def turn_gae_search() -> TrainConfig:
    """PPO with a critic that is trusted where one turn ends and the next begins."""
    return replace(
        grpo_search(),
        advantage=SpanAdvantage(spans=Turn()),
        critic=ValueHead(learning_rate=1e-3, pretraining_steps=8),
    )


def at2po_search_paper() -> TrainConfig:
    """AT²PO as published: arXiv 2601.04767, M = 10, K = 6, L = 2 and its optimiser settings.

    Needs question files and a retrieval server of your own: see ``RetrievalQA``.
    """
    return TrainConfig(
        env=RetrievalQA(),
        model=Model(path="Qwen/Qwen3-4B", dtype="bfloat16"),
        sampler=TransformersEngine(),
        rollout=TreeSearch(
            num_chains=10,
            num_rounds=2,
            num_expansions=6,
            sibling_penalty=0.05,
            max_turn_tokens=2048,
            max_response_tokens=6192,
        ),
        advantage=TreeAdvantage(value="child_softmax", advantage="node_value"),
        objective=Objective(ratio_spans=Turn(), clip_low=3e-3, clip_high=4e-3),
        update=Update(learning_rate=1e-6, prompts_per_minibatch=8),
        steps=200,
        prompts_per_step=64,
        keep_trees_every=10,
    )
