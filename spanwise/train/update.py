"""One batch, several optimizer steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spanwise.batch import Batch
from spanwise.losses import span_ratio
from spanwise.models.scoring import token_scores
from spanwise.train.objective import Objective, TrainRows


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
    """Padded tokens of one forward and backward; changes memory and time, not the result."""

    max_gradient_norm: float = 1.0

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            model.parameters(),
            lr=self.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self.weight_decay,
        )

    def __call__(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        advantages: Tensor,
        objective: Objective,
        *,
        seed: int,
    ) -> dict[str, float]:
        """Update the model in place.

        Args:
          model: The policy.
          optimizer: From ``optimizer``.
          batch: The branches.
          advantages: ``[N, T]`` credit of each model token.
          objective: The loss.
          seed: Of the order of the prompts.

        Returns:
          Metrics of the whole update, each a mean over what it counts.
        """
        device = next(model.parameters()).device
        rows = _train_rows(batch, advantages, objective).to(device)
        old, entropy, mismatch = self._score(model, rows, batch.rollout_logprobs.to(device))
        rows = TrainRows(**{**vars(rows), "old_logprobs": old})
        meter = Meter()
        for minibatch in self._minibatches(rows, seed):
            self._step(model, optimizer, minibatch, objective, meter)
        return {"entropy": entropy, "engine_mismatch": mismatch, **meter.read()}

    @torch.no_grad()
    def _score(
        self, model: Any, rows: TrainRows, rollout_logprobs: Tensor
    ) -> tuple[Tensor, float, float]:
        """Log-probs before the update, and how far the sampling engine was from them."""
        precision = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        old = torch.zeros_like(rows.advantages, dtype=precision)
        entropies = torch.zeros_like(old)
        for chosen in self._microbatches(rows):
            part = rows.take(chosen)
            scores = token_scores(model, part.tokens, part.mask, part.lengths)
            old[chosen, : part.tokens.shape[1]] = scores.logprobs
            entropies[chosen, : part.tokens.shape[1]] = scores.entropies
        difference = (old - rollout_logprobs)[rows.mask].abs().mean()
        return old, float(entropies[rows.mask].mean()), float(difference)

    def _minibatches(self, rows: TrainRows, seed: int) -> Iterator[TrainRows]:
        """The rows of a few prompts at a time, prompts in a new order each epoch."""
        generator = torch.Generator().manual_seed(seed)
        prompts = rows.groups.unique()
        for _ in range(self.epochs):
            order = prompts[torch.randperm(len(prompts), generator=generator).to(prompts.device)]
            for chosen in order.split(self.prompts_per_minibatch):
                yield rows.take(torch.isin(rows.groups, chosen).nonzero().squeeze(-1))

    def _microbatches(self, rows: TrainRows) -> Iterator[Tensor]:
        """Row numbers, rows of like length together, within the token budget."""
        chosen: list[int] = []
        for row in rows.lengths.argsort(stable=True).tolist():
            width = int(rows.lengths[row])
            if chosen and (len(chosen) + 1) * width > self.tokens_per_microbatch:
                yield torch.tensor(chosen, device=rows.lengths.device)
                chosen = []
            chosen.append(row)
        yield torch.tensor(chosen, device=rows.lengths.device)

    def _step(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        rows: TrainRows,
        objective: Objective,
        meter: Meter,
    ) -> None:
        """One optimizer step; a gradient that is not finite is counted and not applied."""
        num_samples, num_tokens = len(rows.tokens), int(rows.mask.sum())
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for chosen in self._microbatches(rows):
            part = rows.take(chosen)
            logprobs = token_scores(model, part.tokens, part.mask, part.lengths).logprobs
            part_loss, metrics = objective(
                logprobs, part, num_samples=num_samples, num_tokens=num_tokens
            )
            part_loss.backward()
            loss += float(part_loss.detach())
            meter.add(metrics, weight=int(part.mask.sum()))
            _measure_turns(meter, logprobs.detach(), part, objective)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_gradient_norm))
        finite = math.isfinite(norm)
        if finite:
            optimizer.step()
            meter.add({"loss": loss, "gradient_norm": norm})
        meter.add({"skipped_steps": float(not finite)})


class Meter:
    """Weighted means of named figures; extremes of those that end in ``_min`` or ``_max``."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)
        self._extremes: dict[str, float] = {}

    def add(self, figures: Mapping[str, Any], *, weight: float = 1.0) -> None:
        """Take in some figures, all of the same weight."""
        for name, figure in figures.items():
            value = float(figure)
            if name.endswith("_min"):
                self._extremes[name] = min(value, self._extremes.get(name, value))
            elif name.endswith("_max"):
                self._extremes[name] = max(value, self._extremes.get(name, value))
            else:
                self._sums[name] += weight * value
                self._weights[name] += weight

    def read(self) -> dict[str, float]:
        """The figures so far."""
        means = {k: self._sums[k] / self._weights[k] for k in self._sums if self._weights[k]}
        return means | self._extremes


def _train_rows(batch: Batch, advantages: Tensor, objective: Objective) -> TrainRows:
    return TrainRows(
        tokens=batch.tokens,
        mask=batch.mask,
        turns=batch.turns,
        advantages=advantages,
        old_logprobs=batch.rollout_logprobs,
        ratio_spans=objective.ratio_spans(batch),
        weights=objective.weights(batch),
        lengths=batch.lengths,
        groups=batch.groups,
    )


def _measure_turns(meter: Meter, logprobs: Tensor, rows: TrainRows, objective: Objective) -> None:
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
