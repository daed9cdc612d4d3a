"""Credit, loss and gradient of every recipe against verl's and TRL's own functions.

Run ``python -m bench.peers`` in an environment that has a peer; each that can be imported is
compared, and its table goes to ``bench/results/peers_verl.json`` or ``peers_trl.json``:

    pip install -e . verl==0.9.1 torch==2.13.0
    pip install -e . trl==1.16.0 torch==2.13.0 transformers==5.19.0

Batches are random, in float64: turns with gaps, turns of one token, rows of unequal length,
groups of four, one of them with equal rewards. The peer's advantages are compared with ours, and
its loss and gradient at *our* advantages with ours, so that one difference is seen once.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import textwrap
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanwise import recipes
from spanwise.batch import Batch
from spanwise.credit import Advantage, GroupAdvantage, SpanAdvantage
from spanwise.learn.objective import Objective
from spanwise.learn.optimizer_step import Counts
from spanwise.partitions import Token, Trajectory
from spanwise.tree import Node, Tree

NUM_BATCHES, NUM_GROUPS, GROUP_SIZE = 20, 5, 4
RESULTS = Path(__file__).parent / "results"

ROUNDING = 1e-12

Found = tuple[str, Callable[[Batch], Tensor], str]
"""A peer's function by name, the call, and what may differ."""

LossFound = tuple[str, Callable[[Batch, Tensor], Tensor], str]
"""The same of a loss, which also takes the log-probs."""


def random_batch(seed: int, spread: float) -> tuple[Batch, Tensor]:
    """A batch of chains with everything that credit and loss read, and new log-probs."""
    draw = np.random.default_rng(seed)
    trees: list[Tree] = []
    for group in range(NUM_GROUPS):
        nodes = [Node(path=(), observation=(5, 6), stop="prompt")]
        for chain in range(GROUP_SIZE):
            num_turns = int(draw.integers(1, 5))
            for turn in range(num_turns):
                size = int(draw.choice([1, 2, 7]))
                logprobs = tuple(map(float, -3 * draw.random(size)))
                last = turn == num_turns - 1
                paid = 0.1 if group == 0 else float(draw.choice([0.0, 1.0, 0.3]))
                nodes.append(
                    Node(
                        path=(chain, *[0] * turn),
                        tokens=tuple(map(int, draw.integers(3, 60, size))),
                        engine_logprobs=logprobs,
                        sampling_logprobs=logprobs,
                        observation=() if last else (8,) * int(draw.integers(1, 4)),
                        stop="end" if last else "continue",
                        reward=paid if last else None,
                    )
                )
        trees.append(Tree(task_id=str(group), nodes=tuple(nodes)))
    batch = Batch.from_trees(trees)
    generator = torch.Generator().manual_seed(seed)
    values, noise = torch.randn(2, *batch.mask.shape, generator=generator, dtype=torch.float64)
    old = batch.engine_logprobs.double()
    batch = replace(
        batch,
        turn_rewards=batch.turn_rewards.double(),
        values=values,
        old_logprobs=old,
        end_values=torch.zeros(batch.num_rows, dtype=torch.float64),
    )
    return batch, old + spread * noise


def our_loss(objective: Objective, batch: Batch, logprobs: Tensor) -> Tensor:
    batch = replace(batch, ratio_spans=objective.ratio_spans(batch))
    batch = replace(batch, loss_weights=objective.weights(batch))
    return objective(logprobs, batch, Counts(batch.num_rows, batch.num_model_tokens))[0]


def apart(got: Tensor, theirs: Tensor, unit: Tensor) -> float:
    """The largest difference, in units of a number that tells the size."""
    return float((got - theirs).abs().max() / unit.clamp(min=1e-12))


class Verl:
    """verl's estimators and policy losses, as its trainer calls them."""

    name = "verl"

    def advantages(self, advantage: Advantage, recipe: str) -> Found | str:
        from verl.trainer.ppo import core_algos as algos  # pyright: ignore

        if isinstance(advantage, SpanAdvantage):
            if not isinstance(advantage.spans, Token):
                return "no counterpart: credit over spans other than tokens"
            if advantage.length_alpha is not None:
                return "no counterpart: λ by the length of the row"

            def gae(batch: Batch) -> Tensor:
                rewards, mask = batch.rewards_by_token, batch.mask.double()
                gamma, lam = advantage.gamma, advantage.lam
                found = algos.compute_gae_advantage_return(rewards, batch.values, mask, gamma, lam)
                return found[0] * mask  # its whitening leaves a number at masked places

            return "compute_gae_advantage_return", gae, "eps of the whitening"
        if not isinstance(advantage, GroupAdvantage):
            return "no counterpart: credit over a tree"
        names = {
            "group_normalised": (
                "grpo",
                "eps",
            ),
            "group_mean": ("grpo", ""),
            "leave_one_out": ("rloo", ""),
            "batch_normalised": (
                "reinforce_plus_plus_baseline",
                "theirs takes mean and deviation over tokens, ours the deviation over rows",
            ),
            "batch_whitened": ("reinforce_plus_plus", "eps of the whitening"),
            "length_weighted": ("opo", ""),
        }
        if advantage.baseline not in names:
            return "no counterpart: group mean with the batch's deviation"
        name, note = names[advantage.baseline]
        if recipe == "gpg_chain":
            name, note = "gpg", "its α is float32"

        def grouped(batch: Batch) -> Tensor:
            options: dict[str, Any] = {"config": SimpleNamespace(gamma=1.0)}
            if name == "grpo":
                options["norm_adv_by_std_in_grpo"] = advantage.baseline == "group_normalised"
            if name != "reinforce_plus_plus":
                options["index"] = batch.groups.numpy()
            estimator = algos.get_adv_estimator_fn(name)
            found = estimator(batch.rewards_by_token, batch.mask.double(), **options)[0]
            # Its α, which ours leaves out, is rows / rows with a reward other than 0.
            return found * (batch.returns != 0).double().mean() if name == "gpg" else found

        return "gpg, divided by its α" if name == "gpg" else name, grouped, note

    def loss(self, objective: Objective, recipe: str) -> LossFound | str:
        from verl.trainer.ppo import core_algos as algos  # pyright: ignore
        from verl.workers.config import ActorConfig  # pyright: ignore

        if not isinstance(objective.ratio_spans, Token | Trajectory):
            return f"no counterpart: ratio over {type(objective.ratio_spans).__name__}"
        kind = "gspo" if isinstance(objective.ratio_spans, Trajectory) else "vanilla"
        if objective.clip == "detached":
            kind = "gpg" if objective.clip_low == objective.clip_high == 0 else "cispo"
        elif objective.clip == "soft":
            kind = "sapo"
        length = objective.loss_aggregation
        mode = {"token": "token-mean", "sample": "seq-mean-token-mean"}.get(
            str(length), "seq-mean-token-sum-norm"
        )
        config = ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            use_dynamic_bsz=True,
            clip_ratio_low=objective.clip_low,
            clip_ratio_high=objective.clip_high,
            clip_ratio_c=1e9,  # dual clip, which ours leaves off
            tau_pos=1 / (objective.clip_high or 1),
            tau_neg=1 / (objective.clip_low or 1),
            global_batch_info={"loss_scale_factor": length} if isinstance(length, int) else {},
        )

        def loss(batch: Batch, logprobs: Tensor) -> Tensor:
            rows = batch.old_logprobs, logprobs, batch.advantages, batch.mask.double()
            return algos.get_policy_loss_fn(kind)(*rows, loss_agg_mode=mode, config=config)[0]

        return f"{kind}, {mode}", loss, "its 1e-8 beside the length"


class Trl:
    """``GRPOTrainer``: its loss as it is, and the lines that make its advantages."""

    name = "trl"

    def advantages(self, advantage: Advantage, recipe: str) -> Found | str:
        from trl.trainer import grpo_trainer  # pyright: ignore

        scales = {"group_normalised": "group", "group_mean": "none", "batch_scaled": "batch"}
        if not isinstance(advantage, GroupAdvantage):
            return "no counterpart: its GRPOTrainer has credit over whole answers alone"
        if advantage.baseline not in scales:
            return f"no counterpart: {advantage.baseline}"
        source = textwrap.dedent(
            inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions)
        )
        start = source.index('if self.multi_objective_aggregation == "sum_then_normalize":')
        stop = source.index("is_std_zero", start)
        lines = textwrap.dedent(" " * 4 + source[start:stop])

        def grouped(batch: Batch) -> Tensor:
            stub = SimpleNamespace(
                multi_objective_aggregation="sum_then_normalize",
                scale_rewards=scales[advantage.baseline],
                reward_weights=torch.ones(1, dtype=torch.float64),
            )
            names: dict[str, Any] = {
                **vars(grpo_trainer),
                "self": stub,
                "device": "cpu",
                "num_generations": GROUP_SIZE,
                "rewards_per_func": batch.returns[:, None],
                "unscorable_mask": torch.zeros(batch.num_rows, dtype=torch.bool),
            }
            exec(lines, names)
            return names["advantages"][:, None] * batch.mask

        note = "" if advantage.baseline == "group_mean" else "its eps is 1e-4, ours 1e-6"
        return f'scale_rewards="{scales[advantage.baseline]}"', grouped, note

    def loss(self, objective: Objective, recipe: str) -> LossFound | str:
        from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore

        level = {Token: "token", Trajectory: "sequence"}.get(type(objective.ratio_spans))
        if level is None:
            return f"no counterpart: ratio over {type(objective.ratio_spans).__name__}"
        length = objective.loss_aggregation
        kind = {"token": "dapo", "sample": "grpo"}.get(str(length), "dr_grpo")
        high, scale, note = objective.clip_high, 1.0, ""
        if level == "sequence" and isinstance(length, int):
            kind, scale, note = "luspo", 1 / length, "times our constant, a number"
        elif objective.clip == "soft":
            kind, note = "sapo", "its temperatures are float32"
        elif objective.clip == "detached":
            if objective.clip_low != 1 or length != "token":
                return "no counterpart: a weight that stays 1"
            kind, high, note = (
                "cispo",
                1 + high,
                "its bound is epsilon_high itself",
            )

        def loss(batch: Batch, logprobs: Tensor) -> Tensor:
            tokens, mask = batch.tokens, batch.mask
            assert batch.advantages is not None
            per_row = batch.advantages
            if kind == "luspo":  # the one loss that has no other form
                per_row = batch.advantages.sum(1) / mask.sum(1)
            stub = SimpleNamespace(
                _get_per_token_logps_and_entropies=lambda *_, **__: (
                    logprobs,
                    torch.zeros_like(logprobs),
                    None,
                ),
                args=SimpleNamespace(
                    steps_per_generation=1,
                    delta=None,
                    sapo_temperature_pos=1 / (objective.clip_high or 1),
                    sapo_temperature_neg=1 / (objective.clip_low or 1),
                ),
                accelerator=SimpleNamespace(
                    num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
                ),
                model=SimpleNamespace(training=True),
                _metrics=defaultdict(lambda: defaultdict(list)),
                aux_loss_enabled=False,
                top_entropy_quantile=1.0,
                off_policy_mask_threshold=None,
                importance_sampling_level=level,
                beta=0.0,
                loss_type=kind,
                epsilon_low=objective.clip_low,
                epsilon_high=high,
                use_vllm=False,
                current_gradient_accumulation_steps=1,
                max_completion_length=length,
                _entropy_bonus_enabled=False,
            )
            inputs = {
                "prompt_ids": tokens[:, :0],
                "prompt_mask": tokens[:, :0],
                "completion_ids": tokens,
                "completion_mask": torch.ones_like(tokens),
                "tool_mask": mask.long(),
                "advantages": per_row,
                "old_per_token_logps": batch.old_logprobs,
                "num_items_in_batch": mask.sum(),
            }
            return scale * GRPOTrainer._compute_loss(stub, stub.model, inputs)

        return f'loss_type="{kind}", {level}', loss, note


def compared(peer: Verl | Trl, recipe: str) -> dict[str, Any]:
    """One row of the table: the largest differences over the random batches."""
    config = recipes.find(recipe)()
    advantage, objective = config.advantage, config.objective
    of_credit, of_loss = peer.advantages(advantage, recipe), peer.loss(objective, recipe)
    row: dict[str, Any] = {"recipe": recipe}
    if isinstance(of_credit, str):
        row["credit"] = of_credit
    else:
        row |= {"credit": of_credit[0], "credit_difference": 0.0, "credit_note": of_credit[2]}
    if isinstance(of_loss, str):
        row["loss"] = of_loss
    else:
        row |= {"loss": of_loss[0], "value_difference": 0.0, "gradient_difference": 0.0}
        row["loss_note"] = of_loss[2]
    for number in range(NUM_BATCHES):
        batch, logprobs = random_batch(number, spread=[0.3, 1e-3][number % 2])
        batch = replace(batch, advantages=advantage(batch).double())
        assert batch.advantages is not None
        if not isinstance(of_credit, str):
            theirs = of_credit[1](batch)
            found = apart(batch.advantages, theirs, theirs.abs().max())
            row["credit_difference"] = max(row["credit_difference"], found)
        if not isinstance(of_loss, str):
            ours, theirs = (
                loss_and_gradient(loss, batch, logprobs)
                for loss in (lambda b, x: our_loss(objective, b, x), of_loss[1])
            )
            # The value is a sum of signed terms that may be near 0; these add up to this size.
            units = theirs[1].abs().sum(), theirs[1].abs().max()
            for name, a, b, unit in zip(("value", "gradient"), ours, theirs, units, strict=True):
                row[f"{name}_difference"] = max(row[f"{name}_difference"], apart(a, b, unit))
    return row


def loss_and_gradient(
    loss: Callable[[Batch, Tensor], Tensor], batch: Batch, logprobs: Tensor
) -> tuple[Tensor, Tensor]:
    x = logprobs.clone().requires_grad_()
    value = loss(batch, x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def text_of(row: dict[str, Any]) -> str:
    """One line of the table; a note only where there is a difference to explain."""
    credit, loss = row["credit"], row["loss"]
    if "credit_difference" in row:
        difference = row["credit_difference"]
        credit += f" {difference:.1e}" + (difference > ROUNDING) * f" ({row['credit_note']})"
    if "value_difference" in row:
        value, gradient = row["value_difference"], row["gradient_difference"]
        loss += f" {value:.1e}, gradient {gradient:.1e}"
        loss += (max(value, gradient) > ROUNDING) * f" ({row['loss_note']})"
    return " | ".join([row["recipe"], credit, loss])


def main() -> None:
    for peer in (Verl(), Trl()):
        if importlib.util.find_spec(peer.name) is None:
            continue
        rows = [compared(peer, recipe) for recipe in recipes.names()]
        print(f"{peer.name} {version(peer.name)}", *map(text_of, rows), sep="\n")
        found = {
            "command": "python -m bench.peers",
            "peer": f"{peer.name} {version(peer.name)}",
            "torch": torch.__version__,
            "batches": NUM_BATCHES,
            "rows": rows,
        }
        file = RESULTS / f"peers_{peer.name}.json"
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
