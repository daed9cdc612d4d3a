"""One batch, several optimizer steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.errors import SpanwiseError
from spanwise.learn.critic import FittedCritic
from spanwise.learn.metric_means import MetricMeans
from spanwise.learn.microbatches import Microbatch, microbatches
from spanwise.learn.nonfinite import NonfiniteCounter
from spanwise.learn.objective import Objective, TrainRows
from spanwise.learn.optimizer import Float32AdamW
from spanwise.learn.packing_check import packing_fault
from spanwise.learn.reward_shaping import KLPenalty
from spanwise.losses import span_ratio
from spanwise.models.critic import ValueModel
from spanwise.models.lora import trained_parameters
from spanwise.models.packing import TokenTree
from spanwise.models.scoring import token_scores
from spanwise.models.sharding import whole
from spanwise.models.tree_attention import TrunkCost
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.spans import span_lengths


@dataclass(frozen=True, kw_only=True)
class Update:
    """How a batch of branches becomes optimizer steps (AdamW, constant learning rate)."""

    learning_rate: float = 1e-6
    weight_decay: float = 0.0
    epochs: int = 1
    """Passes over each batch."""

    prompts_per_minibatch: int = 8
    """One optimizer step for each minibatch of this many prompts."""

    tokens_per_microbatch: int = 16384
    """Computed tokens of one forward and backward; changes memory and time, not the result."""

    packing: Literal["tree", "rows"] = "tree"
    """``tree`` computes the tokens that rows share once, wherever that is exact and faster."""

    max_gradient_norm: float = 1.0
    """A longer gradient is scaled down to this; ``inf`` never is."""

    def __post_init__(self) -> None:
        if not self.learning_rate >= 0 or not self.weight_decay >= 0:
            raise SpanwiseError(
                "update.learning_rate and update.weight_decay must be at least 0, got "
                f"{self.learning_rate} and {self.weight_decay}"
            )
        for name in ("epochs", "prompts_per_minibatch", "tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise SpanwiseError(f"update.{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_gradient_norm > 0:
            raise SpanwiseError(
                "update.max_gradient_norm must be above 0 (inf scales no gradient), got "
                f"{self.max_gradient_norm}"
            )

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Of the weights that are trained: all, or those of an adapter."""
        return Float32AdamW(
            trained_parameters(model),
            lr=self.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self.weight_decay,
        )

    def validate(self, model: Any, batch: Batch, critic: ValueModel | None = None) -> Update:
        """These settings, or with plain rows and a warning if the model cannot be packed.

        Args:
          model: The policy.
          batch: On which it is tried (``packing_fault``).
          critic: Tried too, if there is one.
        """
        if self.packing == "rows":
            return self
        fault = packing_fault(model, batch, critic=critic, budget=self.tokens_per_microbatch)
        if fault is None:
            return self
        warnings.warn(
            f"training on plain rows, shared tokens are recomputed: {fault}", stacklevel=2
        )
        return replace(self, packing="rows")

    @torch.no_grad()
    def score(
        self,
        model: Any,
        batch: Batch,
        *,
        reference: Any = None,
        critic: ValueModel | None = None,
        ranks: Ranks = ALONE,
    ) -> Batch:
        """The batch with what the models say of it before the update.

        Args:
          model: The policy: log-probs and entropies of the tokens.
          batch: The branches.
          reference: A frozen model, for a KL penalty.
          critic: For values.
          ranks: Among which the rows are shared out; each gets the scores of all.
        """
        device = next(model.parameters()).device
        found: dict[str, Tensor] = {}

        def keep(name: str, chosen: Tensor, part: Tensor) -> None:
            shape = (batch.num_rows,) if part.dim() == 1 else batch.tokens.shape
            of_all = found.setdefault(name, torch.zeros(shape, dtype=part.dtype))
            at = chosen if part.dim() == 1 else (chosen, slice(part.shape[1]))
            of_all[at] = part[: len(chosen)].to(of_all.device)

        for part, counts in self._shared(TrunkCost.of(model), batch.tokens, batch.lengths, ranks):
            chosen = part.rows
            tree = None if part.tree is None else part.tree.to(device)
            width = int(batch.lengths[chosen].max())
            tokens = batch.tokens[chosen, :width].to(device)
            mask = batch.mask[chosen, :width].to(device)
            lengths = batch.lengths[chosen].to(device)
            scores = token_scores(model, tokens, mask, lengths, tree)
            kept = chosen if counts else chosen[:0]
            keep("old_logprobs", kept, scores.logprobs)
            keep("token_entropies", kept, scores.entropies)
            if reference is not None:
                logprobs = token_scores(reference, tokens, mask, lengths, tree).logprobs
                keep("reference_logprobs", kept, logprobs)
            if critic is not None:
                predicted = critic(tokens, mask, lengths, scores.logprobs, tree)
                keep("values", kept, predicted.values)
                keep("end_values", kept, predicted.end_values)
        # Each row was scored by one rank and is 0 in the others.
        return replace(batch, **{name: ranks.sum(found[name]) for name in sorted(found)})

    def __call__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        advantages: Tensor,
        objective: Objective,
        *,
        seed: int,
        kl: KLPenalty | None = None,
        critic: FittedCritic | None = None,
        value_targets: Tensor | None = None,
        ranks: Ranks = ALONE,
        nonfinite: NonfiniteCounter | None = None,
    ) -> dict[str, float]:
        """Update the model, and the critic if there is one, in place.

        Args:
          model: The policy.
          optimizer: From ``optimizer``.
          batch: The branches; scored here unless they have been.
          advantages: ``[N, T]`` credit of each model token.
          objective: The loss.
          seed: Of the order of the prompts.
          kl: A penalty in the loss; the batch then needs the reference's log-probs.
          critic: Fitted at the same time, on the same minibatches.
          value_targets: ``[N, T]`` for the critic; the batch then needs values.
          ranks: Among which the work is shared out; each has the same batch, and ends with
            the same model and metrics.
          nonfinite: Goes on counting gradients that are not finite from batch to batch.

        Returns:
          Metrics of the whole update, each a mean over what it counts.
        """
        if batch.old_logprobs is None:
            batch = self.score(model, batch, ranks=ranks)
        meter, nonfinite = MetricMeans(), nonfinite or NonfiniteCounter()
        policy = _Policy(model=model, optimizer=optimizer, objective=objective, kl=kl)
        rows = train_rows(batch, advantages, objective, value_targets)
        for minibatch in self._minibatches(rows.to(next(model.parameters()).device), seed):
            nonfinite.count(self._step(minibatch, meter, policy, critic, ranks), minibatch)
        return {**score_metrics(batch), **meter.over(ranks).read()}

    def fit_critic(
        self,
        critic: FittedCritic,
        batch: Batch,
        value_targets: Tensor,
        objective: Objective,
        *,
        seed: int,
        ranks: Ranks = ALONE,
        nonfinite: NonfiniteCounter | None = None,
    ) -> dict[str, float]:
        """Fit the critic alone; a trunk that it shares with the policy stays as it is."""
        meter, nonfinite = MetricMeans(), nonfinite or NonfiniteCounter()
        rows = train_rows(batch, value_targets, objective, value_targets)
        device = next(critic.model.parameters()).device
        with critic.model.trunk_frozen():
            for minibatch in self._minibatches(rows.to(device), seed):
                nonfinite.count(self._step(minibatch, meter, None, critic, ranks), minibatch)
        return meter.over(ranks).read()

    def _minibatches(self, rows: TrainRows, seed: int) -> Iterator[TrainRows]:
        """The rows of a few prompts at a time, prompts in a new order each epoch."""
        generator = torch.Generator().manual_seed(seed)
        prompts = rows.groups.unique()
        for _ in range(self.epochs):
            order = prompts[torch.randperm(len(prompts), generator=generator).to(prompts.device)]
            for chosen in order.split(self.prompts_per_minibatch):
                yield rows.take(torch.isin(rows.groups, chosen).nonzero().squeeze(-1))

    def _shared(
        self, cost: TrunkCost, tokens: Tensor, lengths: Tensor, ranks: Ranks
    ) -> Iterator[tuple[Microbatch, bool]]:
        """This rank's micro-batches; False with one that another rank counts."""
        parts = microbatches(
            tokens,
            lengths,
            budget=self.tokens_per_microbatch,
            cost=cost if self.packing == "tree" else None,
            num_ranks=ranks.size,
        )
        for number, counts in ranks.assign([cost(p.num_tokens, p.num_pairs) for p in parts]):
            yield parts[number], counts

    def _step(
        self,
        rows: TrainRows,
        meter: MetricMeans,
        policy: _Policy | None,
        critic: FittedCritic | None,
        ranks: Ranks,
    ) -> bool:
        """One optimizer step of each; a gradient that is not finite is counted, not applied.

        Returns:
          Whether all was finite.
        """
        num_samples, num_tokens = len(rows.tokens), int(rows.mask.sum())
        trained = [one for one in (policy, critic) if one is not None]
        assert trained
        cost = trained[0].cost()
        for one in trained:
            one.optimizer.zero_grad(set_to_none=True)
        loss, value_loss = 0.0, 0.0
        for micro, counts in self._shared(cost, rows.tokens, rows.lengths, ranks):
            part, tree, figures = (
                rows.take(micro.rows),
                micro.tree,
                meter if counts else MetricMeans(),
            )
            figures.add(_packing_metrics(micro, part), weight=int(part.lengths.sum()))
            if policy is not None:
                part_loss = counts * policy.loss(
                    part, tree, figures, num_samples=num_samples, num_tokens=num_tokens
                )
                part_loss.backward()
                loss += float(part_loss.detach())
            if critic is not None:
                assert part.old_values is not None and part.value_targets is not None
                values = critic.model(
                    part.tokens, part.mask, part.lengths, part.old_logprobs, tree
                ).values
                part_loss = counts * critic.loss(
                    values, part.old_values, part.value_targets, part.mask, num_tokens=num_tokens
                )
                part_loss.backward()
                value_loss += float(part_loss.detach())
        loss, value_loss = ranks.sum(torch.tensor([loss, value_loss], dtype=torch.float64)).tolist()
        for one in trained:
            ranks.sum_gradients(one.model.parameters())
        meter = meter if ranks.is_main else MetricMeans()  # the figures of a step are every rank's
        finite = True
        if policy is not None:
            finite &= self._apply(policy.model, policy.optimizer, meter, loss, "")
        if critic is not None:
            finite &= self._apply(critic.model, critic.optimizer, meter, value_loss, "value_")
        return finite

    def _apply(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        meter: MetricMeans,
        loss: float,
        prefix: str,
    ) -> bool:
        total = torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_gradient_norm)
        norm = float(whole(total))
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            optimizer.step()
            meter.add({f"{prefix}loss": loss, f"{prefix}gradient_norm": norm})
        meter.add({f"{prefix}skipped_steps": float(not finite)})
        return finite


@dataclass(frozen=True, kw_only=True)
class _Policy:
    """The policy with what its loss needs."""

    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    kl: KLPenalty | None

    def cost(self) -> TrunkCost:
        return TrunkCost.of(self.model)

    def loss(
        self,
        part: TrainRows,
        tree: TokenTree | None,
        meter: MetricMeans,
        *,
        num_samples: int,
        num_tokens: int,
    ) -> Tensor:
        scores = token_scores(self.model, part.tokens, part.mask, part.lengths, tree)
        loss, metrics = self.objective(
            scores.logprobs,
            part,
            num_samples=num_samples,
            num_tokens=num_tokens,
            entropies=scores.entropies,
            kl=self.kl,
        )
        of_tokens, of_spans = int(part.mask.sum()), _num_spans(part.ratio_spans)
        for name, figure in metrics.items():
            by_span = name.startswith("clip_frac/span")
            meter.add({name: figure}, weight=of_spans if by_span else of_tokens)
        _measure_turns(meter, scores.logprobs.detach(), part, self.objective)
        return loss


def score_metrics(batch: Batch) -> dict[str, float]:
    """What the scores say of the policy before the update, as means over model tokens.

    Returns:
      ``entropy`` in nats.
    """
    assert batch.token_entropies is not None
    return {"entropy": float(batch.token_entropies[batch.mask].mean())}


def train_rows(
    batch: Batch, advantages: Tensor, objective: Objective, value_targets: Tensor | None
) -> TrainRows:
    """The rows that a loss is taken of, with all that the losses need."""
    assert batch.old_logprobs is not None
    rows = TrainRows(
        tokens=batch.tokens,
        mask=batch.mask,
        turns=batch.turns,
        advantages=advantages,
        old_logprobs=batch.old_logprobs,
        ratio_spans=objective.ratio_spans(batch),
        weights=objective.weights(batch),
        lengths=batch.lengths,
        groups=batch.groups,
        reference_logprobs=batch.reference_logprobs,
        old_values=batch.values,
        value_targets=value_targets,
    )
    return rows if bool(batch.trained.all()) else rows.take(batch.trained.nonzero().squeeze(-1))


def _num_spans(spans: Tensor) -> float:
    """Of all rows; each token stands for its share of its span."""
    lengths = span_lengths(spans)
    return float((1 / lengths[lengths > 0].double()).sum())


def _packing_metrics(part: Microbatch, rows: TrainRows) -> dict[str, float]:
    """Tokens that the model computed for each token of the rows, and whether they were packed."""
    computed = part.num_tokens / int(rows.lengths.sum())
    return {"computed_to_total": computed, "packed": float(part.tree is not None)}


def _measure_turns(
    meter: MetricMeans, logprobs: Tensor, rows: TrainRows, objective: Objective
) -> None:
    """Ratio and share of clipped tokens for each turn number."""
    ratio = span_ratio(logprobs, rows.old_logprobs, rows.ratio_spans)
    clipped = ((rows.advantages > 0) & (ratio > 1 + objective.clip_high)) | (
        (rows.advantages < 0) & (ratio < 1 - objective.clip_low)
    )
    for turn in range(int(rows.turns.max()) + 1):
        here = rows.turns == turn
        count = int(here.sum())
        if count:
            meter.add({f"ratio/turn_{turn + 1}": ratio[here].mean()}, weight=count)
            meter.add({f"clipped/turn_{turn + 1}": clipped[here].float().mean()}, weight=count)
