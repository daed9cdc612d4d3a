"""The settings of a run, pinned: a new one is a decision, made here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from spanwise import cli, recipes
from spanwise.credit import GroupAdvantage, TreeAdvantage
from spanwise.partitions import LowProbability

EVERYWHERE = {
    "checkpoints.every", "checkpoints.keep",
    "evaluation.every", "evaluation.group_by", "evaluation.num_tasks",
    "evaluation.sampling.temperature", "evaluation.sampling.top_k", "evaluation.sampling.top_p",
    "evaluation.split",
    "failures.backoff_s", "failures.engine_deadline_s", "failures.max_excluded",
    "failures.reply_deadline_s", "failures.retries", "failures.retry", "failures.show",
    "folder", "keep_trees_every",
    "kl.coefficient", "kl.estimator", "kl.where", "kl.target",
    "importance.rejection_bound", "importance.tis_cap",
    "model.compile", "model.device", "model.dtype", "model.gradient_checkpointing",
    "model.lora.alpha", "model.lora.rank", "model.lora.targets", "model.path",
    "objective.loss_aggregation", "objective.clip_high", "objective.clip_low",
    "objective.dual_clip",
    "objective.entropy_bonus", "objective.gradient",
    "objective.shared_turns",
    "overlong.penalty_tokens", "overlong.on_truncation",
    "processes.sharding",
    "prompts_per_step", "dynamic_sampling_rounds",
    "rollout.max_response_tokens", "rollout.max_turn_tokens", "rollout.num_chains",
    "rollout.sampling.temperature", "rollout.sampling.top_k", "rollout.sampling.top_p",
    "sampler.max_prefix_tokens", "sampler.max_rows", "sampler.max_slot_tokens",
    "schedule.warmup_steps", "seed", "steps", "max_off_policy_steps", "trackers",
    "update.epochs", "update.learning_rate", "update.max_gradient_norm",
    "update.packing", "update.prompts_per_minibatch", "update.tokens_per_microbatch",
    "update.weight_decay",
    "watchdog.report_after_s", "watchdog.stop_after_s",
}  # fmt: skip
TREE = {
    "advantage.advantage", "advantage.value",
    "rollout.choose", "rollout.num_expansions", "rollout.num_rounds", "rollout.sibling_penalty",
}  # fmt: skip
CRITIC = {
    "advantage.critic_lam", "advantage.gamma", "advantage.lam", "advantage.length_alpha",
    "advantage.whiten",
    "critic.clip", "critic.learning_rate", "critic.path", "critic.pretraining_steps",
    "critic.reads_surprise", "critic.trunk", "critic.trunk_gradient",
}  # fmt: skip

ENGINES = {
    "transformers": {"max_prefix_tokens", "max_rows", "max_slot_tokens"},
    "vllm": {"compiled", "gpu_memory", "max_rows", "num_gpus", "sleep"},
    "servers": {"patience_s", "urls", "weights"},
}


def options(config: Any, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if prefix == "" and field.name in ("env", "metrics"):
            continue  # an environment's options are its own, functions no options at all
        if dataclasses.is_dataclass(value):
            names |= options(value, f"{prefix}{field.name}.")
        else:
            names.add(prefix + field.name)
    return names


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_builds_with_these_options_and_no_others(name: str) -> None:
    config = recipes.find(name)()
    own = {GroupAdvantage: {"advantage.baseline"}, TreeAdvantage: TREE}.get(
        type(config.advantage), CRITIC
    )
    for place, part in (("advantage.spans", config.advantage), ("objective.ratio_spans", config)):
        spans = part.objective.ratio_spans if part is config else getattr(part, "spans", None)
        if isinstance(spans, LowProbability):
            own = own | {f"{place}.side", f"{place}.threshold"}
    assert options(config) == EVERYWHERE | own


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_these_options_and_no_others(name: str) -> None:
    config = cli._configured("grpo_search", ["--steps", "3", "--sampler", name])
    assert options(config.sampler) == ENGINES[name] and config.steps == 3
