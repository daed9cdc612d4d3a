"""Search agents: AT²PO and what it is compared with on the embedded task, and as published."""

from __future__ import annotations

from dataclasses import replace

from spanwise.credit import GroupAdvantage, SpanAdvantage, TreeAdvantage
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.envs.search.retrieval_qa import RetrievalQA
from spanwise.learn.critic import ValueHead
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import Overlong
from spanwise.learn.update import Update
from spanwise.models.loading import Model
from spanwise.partitions import Token, Trajectory, Turn
from spanwise.rollout.chains import Chains
from spanwise.rollout.tree_search import TreeSearch
from spanwise.samplers.base import Sampling
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


def dapo_search() -> TrainConfig:
    """GRPO with what DAPO adds (arXiv 2503.14476), on the same task: see ``dapo_chain``."""
    base = grpo_search()
    return replace(
        base,
        objective=replace(base.objective, loss_aggregation="token"),
        dynamic_sampling_rounds=2,
        overlong=Overlong(penalty_tokens=40),
    )


def dr_grpo_search() -> TrainConfig:
    """Dr. GRPO (arXiv 2503.20783) on the same task: see ``dr_grpo_chain``."""
    base = grpo_search()
    return replace(
        base,
        advantage=GroupAdvantage(baseline="group_mean"),
        objective=replace(base.objective, loss_aggregation=320, clip_high=0.2),
    )


def rloo_search() -> TrainConfig:
    """RLOO (arXiv 2402.14740) on the same task: each trajectory against its siblings' mean."""
    return replace(grpo_search(), advantage=GroupAdvantage(baseline="leave_one_out"))


def gspo_search() -> TrainConfig:
    """GSPO (arXiv 2507.18071) on the same task: one ratio for all turns of a trajectory."""
    objective = Objective(ratio_spans=Trajectory(), clip_low=3e-4, clip_high=4e-4)
    return replace(grpo_search(), objective=objective)


def turn_gae_search() -> TrainConfig:
    """PPO with a critic that is trusted where one turn ends and the next begins."""
    return replace(
        grpo_search(),
        advantage=SpanAdvantage(spans=Turn()),
        critic=ValueHead(learning_rate=1e-3, pretraining_steps=8),
    )


def random_tree_search() -> TrainConfig:
    """AT²PO in a tree that forks anywhere: what its choice by entropy is to be compared with.

    Tree-GRPO (arXiv 2509.21240) forks at random, too; credit and ratio here are AT²PO's.
    """
    base = at2po_search()
    return replace(base, rollout=replace(base.rollout, choose="random"))


def at2po_search_paper() -> TrainConfig:
    """AT²PO as published: arXiv 2601.04767 and the launch script of its code, for Qwen3-4B.

    Needs question files and a retrieval server of your own: see ``RetrievalQA``. Where each
    setting stands at https://github.com/zzfoutofspace/ATPO/tree/98e60f6/ATPO, in
    ``scripts/ATPO_qwen3_4B.sh`` (S), the ``scripts/config/ppo_trainer_dr.yaml`` that it loads
    (Y), or the code below ``verl_atpo/verl`` alone:

        num_chains, num_rounds, num_expansions    S 82, 84, 85; 22 leaves: S 86
        sibling_penalty=0.05                      vllm_rollout_with_tools_tree_offline.py, 386
        max_response_tokens, observations too     S 62
        max_turn_tokens, no limit of its own      vllm_rollout_with_tools_tree_offline.py, 841
        sampling: temperature, top_p, top_k       Y 124 to 126, none of them in S
        max_calls=6                               Y 200
        num_documents=3                           workers/rollout/tools/search_tool.py, 410
        reward: -1, 0, 1                          S 92; utils/reward_score/deep_research_em.py
        value, advantage, normalised leaves       S 176 to 178
        ratio_spans, gradient, "sample"           S 148; core_algos.py, 970
        clip_low, clip_high; no dual clip         S 149, 150; core_algos.py, 970
        no KL penalty, no entropy bonus           S 138, 158; Y 78
        learning_rate, Constant()                 S 153; Y 90 to 94: no warm-up
        weight_decay, betas                       Y 96; workers/fsdp_workers.py, 361
        max_gradient_norm=1.0, epochs=1           Y 71, 83
        prompts_per_step, prompts_per_minibatch   S 59, 60
        tokens_per_microbatch=16384               S 156
        gradient_checkpointing                    S 146
        evaluation every 20 steps                 S 99

    S 80 passes ``entropy_weight=0.2`` and S 79 a ``branch_probability``; the rollout takes both
    and no score reads them, so that the penalty is the paper's 0.05. S 157 asks for a KL loss,
    S 158 for none of it.

    Ours, for want of theirs or apart from it: 200 steps (S 97: 5 passes over a file that it
    does not name); held-out tasks, how many, and a sampled score beside the greedy one (Y 183 to
    188); weights in bfloat16 with float32 copies in the optimizer (theirs: float32, computed
    with in bfloat16); the instructions; the deadline of a search, and what follows one that
    fails (theirs ends the trajectory, which is scored).

    Theirs, and not to be had here:

    - A prompt above 2,000 tokens is an error (S 61, Y 18); here prompts have no limit.
    - At a seventh call the model is told that none is left, in the midst of its turn, which goes
      on; here the trajectory ends with -1, as one of broken format.
    - A minibatch is 176 rows of any prompts, dealt out so that lengths balance
      (trainer/ppo/ray_trainer.py, 926) and never shuffled (Y 84); here it is the rows of 8
      prompts, in random order.
    - A tree with more or fewer than 22 leaves is cut down at random or filled with copies of its
      last leaf; here a tree has 22.
    - The prompt is among the turns to fork: see ``tree_search.by_entropy``.
    """
    return TrainConfig(
        env=RetrievalQA(max_calls=6, num_documents=3),
        model=Model(path="Qwen/Qwen3-4B", dtype="bfloat16", gradient_checkpointing=True),
        sampler=TransformersEngine(),
        rollout=TreeSearch(
            num_chains=10,
            num_rounds=2,
            num_expansions=6,
            sibling_penalty=0.05,
            sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0),
            max_turn_tokens=6192,
            max_response_tokens=6192,
        ),
        advantage=TreeAdvantage(value="child_softmax", advantage="node_value"),
        objective=Objective(
            ratio_spans=Turn(), loss_aggregation="sample", clip_low=3e-3, clip_high=4e-3
        ),
        update=Update(
            learning_rate=1e-6,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            epochs=1,
            prompts_per_minibatch=8,
            tokens_per_microbatch=16384,
            max_gradient_norm=1.0,
        ),
        evaluation=Evaluation(every=20),
        steps=200,
        prompts_per_step=64,
        keep_trees_every=10,
    )
