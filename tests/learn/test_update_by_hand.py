"""Every option of the update against the same steps in a plain loop, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.credit import Advantage
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.learner import Learner
from spanwise.learn.objective import Objective
from spanwise.learn.reward_shaping import KLPenalty, Overlong
from spanwise.learn.schedule import Constant, Linear, Schedule
from spanwise.learn.update import Update
from spanwise.partitions import (
    LowProbability,
    MeanLength,
    Partition,
    Token,
    Trajectory,
    Turn,
)
from spanwise.tree import Path, Tree
from tests.learners import trained
from tests.tiny import tiny_model
from tests.trees import RANDOM_TREES, truncated

LIMIT = 12
NUM_STEPS = 8


def drawn_elsewhere(tree: Tree) -> Tree:
    """Sampled from another distribution than the policy's, and some answers cut."""
    nodes = [
        replace(
            node,
            sampling_logprobs=tuple(
                (2 + t % 3 * 4) * p for t, p in enumerate(node.engine_logprobs)
            ),
        )
        for node in truncated(tree, every=3).nodes
    ]
    return replace(tree, nodes=tuple(nodes))


TREES = [drawn_elsewhere(tree) for tree in RANDOM_TREES[:3]]


def credit_of(token: int, returned: float) -> float:
    return token % 5 - 2 + returned


@dataclass(frozen=True, kw_only=True)
class OfTokens(Advantage):
    """Differs from token to token, so that it shows who is given whose gradient."""

    def __call__(self, batch: Batch) -> Tensor:
        credit = batch.tokens % 5 - 2 + batch.returns[:, None]
        return torch.where(batch.mask, credit, 0).double()


@dataclass(frozen=True, kw_only=True)
class Settings:
    objective: Objective = Objective(
        ratio_spans=Token(), loss_aggregation="token", clip_low=0.02, clip_high=0.03
    )
    update: Update = Update(
        learning_rate=3e-3, epochs=3, prompts_per_minibatch=3, max_gradient_norm=1e9
    )
    kl: KLPenalty = KLPenalty()
    overlong: Overlong = Overlong()
    importance: ImportanceCorrection = ImportanceCorrection()
    schedule: Schedule = field(default_factory=Constant)
    temperature: float = 1.0


PLAIN = Settings()
UNLIKELY, SHORT = LowProbability(threshold=0.6), MeanLength(length=2.5)


def objective(**changes: Any) -> Settings:
    return replace(PLAIN, objective=replace(PLAIN.objective, **changes))


def update(**changes: Any) -> Settings:
    return replace(PLAIN, update=replace(PLAIN.update, **changes))


CASES = {
    "plain": PLAIN,
    "ratio_spans turn": objective(ratio_spans=Turn()),
    "ratio_spans trajectory": objective(ratio_spans=Trajectory()),
    "gradient": objective(ratio_spans=Turn(), gradient="span"),
    "ratio_spans low_probability": objective(ratio_spans=UNLIKELY),
    "ratio_spans.threshold": objective(ratio_spans=replace(UNLIKELY, threshold=0.4)),
    "ratio_spans.side": objective(ratio_spans=replace(UNLIKELY, side="end")),
    "ratio_spans.logprobs": objective(ratio_spans=replace(UNLIKELY, logprobs="sampling")),
    "ratio_spans mean_length": objective(ratio_spans=SHORT),
    "ratio_spans.length": objective(ratio_spans=replace(SHORT, length=4.0)),
    "ratio_spans mean_length, side": objective(ratio_spans=replace(SHORT, side="end")),
    "ratio_spans mean_length, logprobs": objective(ratio_spans=replace(SHORT, logprobs="sampling")),
    "clip_low": objective(clip_low=0.2),
    "clip_high": objective(clip_high=0.28),
    "dual_clip": replace(
        objective(dual_clip=1.01), update=replace(PLAIN.update, learning_rate=2e-2)
    ),
    "clip detached": objective(clip="detached"),
    "clip detached turn": objective(clip="detached", ratio_spans=Turn()),
    "clip detached trajectory": objective(clip="detached", ratio_spans=Trajectory()),
    "clip detached, gradient": objective(clip="detached", ratio_spans=Turn(), gradient="span"),
    "clip soft": objective(clip="soft", clip_low=0.04),
    "clip soft turn": objective(clip="soft", ratio_spans=Turn()),
    "clip soft trajectory": objective(clip="soft", ratio_spans=Trajectory()),
    "clip soft, gradient": objective(clip="soft", ratio_spans=Turn(), gradient="span"),
    "entropy_bonus": objective(entropy_bonus=0.1),
    "loss_aggregation sample": objective(loss_aggregation="sample"),
    # Adam takes the same steps on a tenth of a gradient: this little is seen beside its epsilon.
    "loss_aggregation number": objective(loss_aggregation=10**6),
    "shared_turns once": objective(shared_turns="once"),
    "shared_turns mean": objective(shared_turns="mean"),
    "shared_turns sqrt": objective(shared_turns="sqrt"),
    "learning_rate": update(learning_rate=1e-3),
    "weight_decay": update(weight_decay=0.5),
    "betas, of the gradient": update(betas=(0.5, 0.95)),
    "betas, of its square": update(betas=(0.9, 0.5)),
    "epochs": update(epochs=2),
    "max_gradient_norm": update(max_gradient_norm=0.1),
    "schedule": replace(PLAIN, schedule=Linear(warmup_steps=4)),
    "kl": replace(PLAIN, kl=KLPenalty(coefficient=0.3)),
    "kl.estimator": replace(PLAIN, kl=KLPenalty(coefficient=0.3, estimator="k3")),
    "kl.where": replace(PLAIN, kl=KLPenalty(coefficient=0.3, estimator="k1", where="reward")),
    "overlong.on_truncation": replace(PLAIN, overlong=Overlong(on_truncation="mask")),
    "overlong.penalty_tokens": replace(PLAIN, overlong=Overlong(penalty_tokens=8)),
    "tis_cap": replace(PLAIN, importance=ImportanceCorrection(tis_cap=1.5)),
    "rejection_bound": replace(PLAIN, importance=ImportanceCorrection(rejection_bound=30.0)),
    "temperature": replace(
        objective(entropy_bonus=0.1), temperature=0.6, kl=KLPenalty(coefficient=0.3)
    ),
    "importance.spans": replace(PLAIN, importance=ImportanceCorrection(spans=Turn(), tis_cap=1.5)),
}


def by_the_learner(settings: Settings) -> Tensor:
    """All weights after the update, in float64."""
    model = tiny_model(dtype=torch.float64)
    learner = Learner(
        model,
        advantage=OfTokens(),
        objective=settings.objective,
        update=settings.update,
        schedule=settings.schedule,
        num_steps=NUM_STEPS,
        kl=settings.kl,
        overlong=settings.overlong,
        max_response_tokens=LIMIT,
        importance=settings.importance,
        temperature=settings.temperature,
    )
    if learner.reference is not None:
        learner.reference = tiny_model(seed=7, dtype=torch.float64)
    trained(learner, TREES)
    return flat(model)


def flat(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@dataclass(kw_only=True)
class Row:
    tokens: list[int]
    places: list[int]
    """Of the model's tokens."""
    nodes: list[tuple[str, Path]]
    logprobs: dict[str, Tensor]
    """Of the model's tokens, by the engine and as they were drawn."""
    returned: float
    cut: bool

    def span(self, partition: Partition, k: int) -> list[int]:
        """The model tokens that share a span with the ``k``-th."""
        if isinstance(partition, Token):
            return [k]
        everything = range(len(self.places))
        if isinstance(partition, Trajectory):
            return list(everything)
        if isinstance(partition, LowProbability | MeanLength):
            unlikely = (self.logprobs[partition.logprobs] < limit_of(partition)).tolist()
            before = 1 if partition.side == "end" else 0
            cuts = [j for j in everything if j > 0 and unlikely[j - before]]
            return [j for j in everything if not any(min(j, k) < cut <= max(j, k) for cut in cuts)]
        return [j for j in everything if self.nodes[j] == self.nodes[k]]

    def scores(self, model: Any, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the model's tokens, of this row alone."""
        logits = model(input_ids=torch.tensor([self.tokens])).logits[0] / temperature
        before = logits.log_softmax(-1)[torch.tensor(self.places) - 1]
        chosen = [before[k, self.tokens[place]] for k, place in enumerate(self.places)]
        return torch.stack(chosen), -(before.exp() * before).sum(-1)


def rows_of(trees: Sequence[Tree]) -> list[Row]:
    rows: list[Row] = []
    for tree in trees:
        for branch in tree.branches():
            tokens: list[int] = []
            places: list[int] = []
            for node in branch.nodes:
                places += range(len(tokens), len(tokens) + len(node.tokens))
                tokens += [*node.tokens, *node.observation]
            rows.append(
                Row(
                    tokens=tokens,
                    places=places,
                    nodes=[(tree.task_id, n.path) for n in branch.turns for _ in n.tokens],
                    logprobs={
                        "engine": torch.tensor(
                            [p for n in branch.turns for p in n.engine_logprobs]
                        ),
                        "sampling": torch.tensor(
                            [p for n in branch.turns for p in n.sampling_logprobs]
                        ),
                    },
                    returned=branch.leaf.reward or 0.0,
                    cut=branch.leaf.stop == "length",
                )
            )
    return rows


def limit_of(partition: LowProbability | MeanLength) -> float:
    """The log-prob below which a token is at a boundary."""
    if isinstance(partition, LowProbability):
        return math.log(partition.threshold)
    rows = [row.logprobs[partition.logprobs].tolist() for row in rows_of(TREES)]
    inner = [row[1:] if partition.side == "start" else row[:-1] for row in rows]
    num_boundaries = round(sum(map(len, rows)) / partition.length) - len(rows)
    return sorted(x for row in inner for x in row)[max(0, num_boundaries)]


@cache
def by_hand(name: str) -> Tensor:
    settings, rows = CASES[name], rows_of(TREES)
    model, reference = (tiny_model(seed=seed, dtype=torch.float64) for seed in (0, 7))
    with torch.no_grad():
        old = [row.scores(model, settings.temperature)[0] for row in rows]
        held = [row.scores(reference, settings.temperature)[0] for row in rows]
    for row, was, ref in zip(rows, old, held, strict=True):
        if settings.kl.where == "reward":
            row.returned -= settings.kl.coefficient * float((was - ref).sum())
        if soft := settings.overlong.penalty_tokens:
            over = len(row.tokens) - row.places[0] - (LIMIT - soft)
            row.returned -= min(max(over / soft, 0.0), 1.0)
    masks = settings.overlong.on_truncation == "mask"
    kept = [i for i, row in enumerate(rows) if not (masks and row.cut)]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.update.learning_rate * settings.schedule(1, NUM_STEPS),
        betas=settings.update.betas,
        weight_decay=settings.update.weight_decay,
    )
    num_tokens = sum(len(rows[i].places) for i in kept)
    for _ in range(settings.update.epochs):
        optimizer.zero_grad()
        for i in kept:
            losses = row_losses(settings, rows[i], model, old[i], held[i])
            weights = [
                shared(settings.objective, rows, kept, i, k)
                * importance(settings, rows[i], old[i], k)
                for k in range(len(losses))
            ]
            total: Any = sum(w * loss for w, loss in zip(weights, losses, strict=True))
            aggregation = settings.objective.loss_aggregation
            if aggregation == "token":
                total = total / num_tokens
            else:
                length = len(losses) if aggregation == "sample" else aggregation
                total = total / (len(kept) * length)
            total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.update.max_gradient_norm)
        optimizer.step()
    return flat(model)


def row_losses(settings: Settings, row: Row, model: Any, old: Tensor, held: Tensor) -> list[Any]:
    objective, kl = settings.objective, settings.kl
    new, entropies = row.scores(model, settings.temperature)
    losses: list[Any] = []
    for k, place in enumerate(row.places):
        span = row.span(objective.ratio_spans, k)
        mean = (new - old)[span].mean()
        ratio = mean.exp()
        if objective.gradient == "token":
            ratio = ratio.detach() * (new[k] - new[k].detach()).exp()
        credit = credit_of(row.tokens[place], row.returned)
        low, high = 1 - objective.clip_low, 1 + objective.clip_high
        gain = torch.minimum(ratio * credit, ratio.clamp(low, high) * credit)
        if objective.clip == "detached":
            own = new[k] if objective.gradient == "token" else new[span].mean()
            gain = ratio.detach().clamp(low, high) * credit * own
        elif objective.clip == "soft":
            tau = 1 / (objective.clip_high if credit > 0 else objective.clip_low)
            gain = credit * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
        if objective.dual_clip is not None and credit < 0:
            gain = gain.clamp(min=objective.dual_clip * credit)
        loss = objective.entropy_bonus * -entropies[k] - gain
        if kl.where == "loss":
            apart = new[k] - held[k]
            nats = apart**2 / 2 if kl.estimator == "k2" else (-apart).exp() - 1 + apart
            loss = loss + kl.coefficient * nats
        losses.append(loss)
    return losses


def shared(objective: Objective, rows: list[Row], kept: list[int], i: int, k: int) -> float:
    through = [j for j in kept if rows[i].nodes[k] in rows[j].nodes]
    return {
        "per_leaf": 1.0,
        "once": float(through[0] == i),
        "mean": 1 / len(through),
        "sqrt": len(through) ** -0.5,
    }[objective.shared_turns]


def importance(settings: Settings, row: Row, old: Tensor, k: int) -> float:
    correction = settings.importance
    span = row.span(correction.spans, k)
    ratio = math.exp(float((old - row.logprobs["sampling"])[span].sum()))
    bound = correction.rejection_bound
    weight = 1.0 if math.isinf(correction.tis_cap) else min(ratio, correction.tis_cap)
    return weight * (1 / bound <= ratio <= bound)


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_that_of_a_plain_loop(name: str) -> None:
    torch.testing.assert_close(by_the_learner(CASES[name]), by_hand(name), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_no_two_of_these_settings_give_the_same_weights() -> None:
    names = list(CASES)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert (by_hand(a) - by_hand(b)).abs().max() > 1e-4, (a, b)


def test_clip_limits_do_nothing_where_a_step_has_one_update() -> None:
    def weights(epochs: int, limit: float) -> Tensor:
        clipped = replace(PLAIN.objective, clip_low=limit, clip_high=limit)
        return by_the_learner(
            replace(PLAIN, objective=clipped, update=replace(PLAIN.update, epochs=epochs))
        )

    assert torch.equal(weights(1, 0.02), weights(1, 0.2))
    assert (weights(2, 0.02) - weights(2, 0.2)).abs().max() > 1e-4


def test_prompts_come_in_a_new_order_each_epoch_and_step() -> None:
    seen: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Objective):
        def __call__(self, logprobs: Tensor, batch: Batch, counts: Any, **more: Any) -> Any:
            (prompt,) = batch.groups.unique().tolist()
            seen.append(prompt)
            return super().__call__(logprobs, batch, counts, **more)

    def orders(seed: int, step: int) -> list[tuple[int, ...]]:
        seen.clear()
        one_by_one = Update(learning_rate=0.0, epochs=4, prompts_per_minibatch=1)
        learner = Learner(
            tiny_model(), advantage=OfTokens(), objective=Watched(), update=one_by_one, seed=seed
        )
        trained(learner, RANDOM_TREES, step=step)
        each = len(seen) // 4
        return [tuple(dict.fromkeys(seen[i * each : (i + 1) * each])) for i in range(4)]

    first = orders(0, 1)
    assert all(sorted(order) == list(range(6)) for order in first)
    assert orders(0, 1) == first
    assert len({*first, *orders(0, 2), *orders(1, 1)}) == 12
