"""The agreement of advantages with the truth: SAE's correlation study for any critic.

For each span of a rollout, trajectories sampled afresh from both of its ends give the
value before and after it. Their difference, given to every token of the span, is close to
the true advantage, and every estimator's advantages are correlated with it (Gong et al.,
arXiv:2601.07320, section 5.3.2).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanwise.advantages import explained_variance
from spanwise.batch import Batch
from spanwise.credit import SpanAdvantage
from spanwise.envs.base import Split, Task
from spanwise.errors import SpanwiseError
from spanwise.learn.learner import score_batch
from spanwise.learn.microbatches import Microbatching
from spanwise.models.critic import ValueModel
from spanwise.partitions import (
    Delimiter,
    FixedLength,
    HighEntropy,
    LowProbability,
    MeanLength,
    Partition,
    Token,
)
from spanwise.rollout.context import RolloutContext
from spanwise.runtime.distributed import ALONE
from spanwise.runtime.event_loop import run_async
from spanwise.runtime.seeds import seed_of
from spanwise.study.continuations import Place, continuation_returns
from spanwise.study.statistics import bootstrap_interval, pearson, spearman
from spanwise.train.config import TrainConfig
from spanwise.train.evaluate import play
from spanwise.tree import Tree

REFERENCE = "SAE start"
"""The estimator that the others are compared with, resample by resample."""


@dataclass(frozen=True, kw_only=True)
class CorrelationStudy:
    """Correlate advantages with Monte Carlo values of a run's policy."""

    num_prompts: int = 120
    """Number of prompts, at least 2; one rollout is sampled from each."""

    num_continuations: int = 32
    """Fresh trajectories from each end of a span, at least 2."""

    split: Split = "dev"
    """Split that the prompts are from."""

    truth: Partition = LowProbability()
    """Spans at whose ends the value is measured."""

    delimiter: str | None = None
    """Text that closes a step, for one more estimator, whose spans are such steps."""

    num_resamples: int = 1000
    """Bootstrap resamples of the prompts."""

    seed: int = 0
    """Seed of the rollouts, the continuations and the bootstrap."""

    def __post_init__(self) -> None:
        if min(self.num_prompts, self.num_continuations) < 2 or self.num_resamples < 1:
            raise SpanwiseError(
                "the study needs at least 2 prompts, 2 continuations and 1 resample, got "
                f"{self.num_prompts}, {self.num_continuations} and {self.num_resamples}"
            )

    def estimators(self) -> dict[str, SpanAdvantage]:
        """The estimators to compare, by name."""
        token = Token()
        estimators = {
            "GAE(1)": SpanAdvantage(spans=token, lam=1.0),
            "GAE(0.95)": SpanAdvantage(spans=token),
            "GAE(λ by length)": SpanAdvantage(spans=token, length_alpha=0.05),
            REFERENCE: SpanAdvantage(spans=LowProbability(side="start")),
            "SAE end": SpanAdvantage(spans=LowProbability(side="end")),
            "SAE, mean 8": SpanAdvantage(spans=MeanLength(length=8)),
            "length 8": SpanAdvantage(spans=FixedLength(length=8)),
            "length 32": SpanAdvantage(spans=FixedLength(length=32)),
            "entropy": SpanAdvantage(spans=HighEntropy()),
        }
        if self.delimiter is not None:
            estimators["delimiter"] = SpanAdvantage(spans=Delimiter(text=self.delimiter))
        return {name: replace(one, whiten=False) for name, one in estimators.items()}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of one estimator with the truth; intervals are of 95%, over prompts."""

    estimator: str
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]
    over_reference: float
    """Its Pearson correlation less that of ``SAE start``."""

    over_reference_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CorrelationResult:
    """The figures of the study."""

    agreements: list[Agreement]
    num_prompts: int
    num_tokens: int
    num_spans: int
    num_continuations: int
    failed: int
    """Continuations without a reward, left out."""

    reward: float
    """Mean return of the rollouts."""

    critic_explained_variance: float
    """Share of the variance of the rollouts' own returns to go that the critic explains."""

    truth_reliability: float
    """Correlation of the truth with another measurement of it: between halves of the
    continuations, stepped up to all of them (Spearman and Brown)."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Monte Carlo advantages of a batch."""

    advantages: Tensor
    """``[N, T]``, 0 where masked."""

    halves: tuple[Tensor, Tensor]
    """The same from every other continuation alone."""

    num_spans: int
    failed: int


def correlation_study(
    study: CorrelationStudy,
    config: TrainConfig,
    context: RolloutContext,
    policy: Any,
    critic: ValueModel,
    progress: Callable[[int, int, float], None] = lambda done, total, seconds_left: None,
) -> CorrelationResult:
    """Run the study.
    ``progress`` is told prompts done, prompts in all and the seconds that are left.

    Raises:
      ValueError: if the split has too few prompts, or nothing could be scored.
    """
    tasks = config.env.tasks(study.split)[: study.num_prompts]
    if len(tasks) < study.num_prompts:
        raise SpanwiseError(
            f"the {study.split} split has {len(tasks)} prompts, not {study.num_prompts}; "
            "take fewer, or another split"
        )
    context = replace(context, seed=seed_of(study.seed, "rollouts"))
    trees = run_async(play(context, config.rollout, tasks, config.rollout.sampling, ALONE))
    scored = [i for i, tree in enumerate(trees) if tree.leaves()[0].reward is not None]
    tasks, trees = [tasks[i] for i in scored], [trees[i] for i in scored]
    batch = Batch.from_trees(trees)
    update = config.update
    microbatching = Microbatching(
        budget=update.tokens_per_microbatch, packed=update.packing == "tree"
    ).checked(policy, batch, critic)
    batch = score_batch(batch, policy, critic=critic, microbatching=microbatching)
    batch = replace(batch, end_values=None)
    truth = true_advantages(study, config, context, tasks, trees, batch, progress)

    assert batch.values is not None
    returns_to_go = batch.rewards_by_token.flip(1).cumsum(1).flip(1)
    half, other = (half[batch.mask].double().numpy() for half in truth.halves)
    between = float(pearson(half, other[None])[0])
    return CorrelationResult(
        agreements=agreements(study, context, batch, truth.advantages),
        num_prompts=batch.num_rows,
        num_tokens=batch.num_model_tokens,
        num_spans=truth.num_spans,
        num_continuations=study.num_continuations,
        failed=truth.failed,
        reward=float(batch.returns.mean()),
        critic_explained_variance=explained_variance(batch.values, returns_to_go, batch.mask),
        truth_reliability=2 * between / (1 + between),
    )


def agreements(
    study: CorrelationStudy, context: RolloutContext, batch: Batch, truth: Tensor
) -> list[Agreement]:
    """Every estimator's correlation with the ``[N, T]`` truth, over all model tokens."""
    names, estimators = zip(*study.estimators().items(), strict=True)
    estimates = [e.bind(context.tokenizer)(batch)[batch.mask] for e in estimators]
    wanted = truth[batch.mask].double().numpy()
    estimated = torch.stack(estimates).double().numpy()
    prompts = batch.groups[:, None].expand_as(batch.mask)[batch.mask].numpy()
    members = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]

    def correlations(drawn: Sequence[int]) -> np.ndarray:
        """``[3, E]``: Pearson, Spearman and Pearson over the reference, of some prompts."""
        at = np.concatenate([members[prompt] for prompt in drawn])
        linear = pearson(wanted[at], estimated[:, at])
        by_rank = spearman(wanted[at], estimated[:, at])
        return np.stack([linear, by_rank, linear - linear[names.index(REFERENCE)]])

    everyone = list(range(len(members)))
    values = correlations(everyone)
    low, high = bootstrap_interval(
        correlations, everyone, num_resamples=study.num_resamples, seed=study.seed
    )
    compared: list[Agreement] = []
    for e, name in enumerate(names):
        figures: dict[str, Any] = {}
        for row, kind in enumerate(("pearson", "spearman", "over_reference")):
            figures[kind] = float(values[row, e])
            figures[f"{kind}_interval"] = (float(low[row, e]), float(high[row, e]))
        compared.append(Agreement(estimator=name, **figures))
    return compared


def true_advantages(
    study: CorrelationStudy,
    config: TrainConfig,
    context: RolloutContext,
    tasks: Sequence[Task],
    trees: Sequence[Tree],
    batch: Batch,
    progress: Callable[[int, int, float], None],
) -> Truth:
    """The value after a span less the value before it, at each token of the span.

    Values are those of whole trajectories, so that what is paid within a span counts for it;
    the value after the last span is the rollout's own return.
    """
    spans = study.truth.bind(context.tokenizer)(batch)
    whole = torch.zeros_like(batch.engine_logprobs)
    halves = (whole.clone(), whole.clone())
    started, num_spans, failed = time.monotonic(), 0, 0
    for row, (task, tree) in enumerate(zip(tasks, trees, strict=True)):
        numbers = spans[row][batch.mask[row]]
        values, lost = run_async(_end_values(study, config, context, task, tree, numbers))
        for target, of_span in zip((whole, *halves), values.diff(dim=1), strict=True):
            target[row, batch.mask[row]] = of_span[numbers]
        num_spans += values.shape[1] - 1
        failed += lost
        seconds = time.monotonic() - started
        progress(row + 1, len(trees), seconds / (row + 1) * (len(trees) - row - 1))
    return Truth(advantages=whole, halves=halves, num_spans=num_spans, failed=failed)


async def _end_values(
    study: CorrelationStudy,
    config: TrainConfig,
    context: RolloutContext,
    task: Task,
    tree: Tree,
    numbers: Tensor,
) -> tuple[Tensor, int]:
    """``[3, K + 1]`` values at the ends of K spans, and the continuations that failed.

    Row 0 is from all continuations, rows 1 and 2 from every other one.
    """
    branch = next(tree.branches())
    places = [
        Place(turn, offset)
        for turn, node in enumerate(branch.turns)
        for offset in range(len(node.tokens))
    ]
    opens = [0, *(numbers.diff() > 0).nonzero().squeeze(1).add(1).tolist()]
    returns = await asyncio.gather(
        *(
            continuation_returns(
                context,
                config.rollout,
                task,
                branch,
                places[position],
                study.num_continuations,
                seed_of(study.seed, "continuation", position),
            )
            for position in opens
        )
    )
    end = tree.returns(branch.leaf)
    assert end is not None
    values = [
        [*(_mean(scored[first::step], task) for scored in returns), end]
        for first, step in ((0, 1), (0, 2), (1, 2))
    ]
    return torch.tensor(values), sum(study.num_continuations - len(scored) for scored in returns)


def _mean(returns: Sequence[float], task: Task) -> float:
    if not returns:
        raise SpanwiseError(f"no continuation of task {task.id} could be scored")
    return sum(returns) / len(returns)
