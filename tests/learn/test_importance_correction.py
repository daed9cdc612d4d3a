"""Engine and trainer that disagree: what is measured, and what the correction does to a run."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spanwise.batch import Batch
from spanwise.learn.critic import NoCritic
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.objective import Objective
from spanwise.partitions import FixedLength, Partition, Token, Trajectory, Turn
from spanwise.run.folder import RunFolder
from spanwise.samplers.base import Sampling
from spanwise.samplers.embedded.engine import TransformersEngine, TransformersSampler
from tests.train.letters import letters, run
from tests.trees import RANDOM_TREES

TOKEN = Objective(ratio_spans=Token(), loss_aggregation="token")


@dataclass(frozen=True, kw_only=True)
class DisturbedEngine(TransformersEngine):
    """Draws from weights that are a little off, as another precision would make them."""

    noise: float = 0.05

    def build(self, model: Any, tokenizer: Any) -> TransformersSampler:
        return DisturbedSampler(self, model, tokenizer)


class DisturbedSampler(TransformersSampler):
    def __init__(self, engine: DisturbedEngine, model: Any, tokenizer: Any) -> None:
        self._noise = engine.noise
        super().__init__(engine, self._disturbed(model), tokenizer)

    def update_weights(self, model: Any) -> None:
        super().update_weights(self._disturbed(model))

    def _disturbed(self, model: Any) -> Any:
        off, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in off.parameters():
                weight += self._noise * torch.randn(weight.shape, generator=generator)
        return off


def scored(difference: float = 0.0) -> Batch:
    """Trees whose trainer finds every token likelier by so many nats than the engine."""
    batch = Batch.from_trees(RANDOM_TREES)
    return replace(batch, old_logprobs=batch.engine_logprobs + difference * batch.mask)


def test_metrics_by_hand() -> None:
    metrics = ImportanceCorrection().metrics(scored(0.1))
    batch = Batch.from_trees(RANDOM_TREES)
    longest_turn = max(len(n.tokens) for t in RANDOM_TREES for b in t.branches() for n in b.turns)
    assert metrics["engine_mismatch"] == pytest.approx(0.1, rel=1e-5)
    assert metrics["engine_mismatch_max"] == pytest.approx(0.1, rel=1e-5)
    assert metrics["engine_kl_k1"] == pytest.approx(-0.1, rel=1e-5)
    assert metrics["engine_kl"] == pytest.approx(math.expm1(0.1) - 0.1, rel=1e-4)
    assert metrics["engine_ratio/token_max"] == pytest.approx(math.exp(0.1), rel=1e-5)
    assert metrics["engine_ratio/turn_max"] == pytest.approx(math.exp(0.1 * longest_turn), rel=1e-5)
    fewest = int(batch.mask.sum(1).min())
    assert metrics["engine_ratio/trajectory_min"] == pytest.approx(math.exp(0.1 * fewest), rel=1e-5)


@pytest.mark.parametrize("spans", [Token(), Turn(), Trajectory(), FixedLength(length=2)], ids=str)
def test_bounds_weigh_and_leave_out_spans(spans: Partition) -> None:
    batch, objective = scored(0.1), TOKEN
    plain = objective.weights(batch)
    assert ImportanceCorrection(spans=spans)(batch) is batch  # at infinity nothing changes
    numbers = spans(batch)
    counts = (numbers[:, :, None] == numbers[:, None, :]).sum(-1)
    ratio = torch.exp(0.1 * counts)
    weighted = ImportanceCorrection(spans=spans, tis_cap=1.3)(batch)
    expected = plain * ratio.clamp(max=1.3)
    torch.testing.assert_close(objective.weights(weighted), expected, rtol=1e-5, atol=0)
    left = ImportanceCorrection(spans=spans, rejection_bound=1.3)(batch)
    torch.testing.assert_close(objective.weights(left), plain * (ratio <= 1.3), rtol=0, atol=0)


def test_the_correction_counts_the_temperature_and_garbage_changes_nothing() -> None:
    batch = scored()
    drawn = batch.sampling_logprobs - 0.2  # flattened: every token drawn was less likely so
    dirty = torch.where(batch.mask, drawn, torch.nan)
    weighted = ImportanceCorrection(tis_cap=1e9, rejection_bound=2.0)(
        replace(batch, sampling_logprobs=dirty)
    )
    expected = TOKEN.weights(batch) * math.exp(0.2)
    torch.testing.assert_close(TOKEN.weights(weighted), expected, rtol=1e-5, atol=0)


def timeless(log: RunFolder) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if not k.startswith(("seconds/", "importance/"))}
        for line in log.read_metrics()
    ]


def test_runs_on_a_disturbed_engine(tmp_path: Path) -> None:
    base = letters(critic=NoCritic(), sampler=DisturbedEngine(), evaluation=letters().evaluation)
    plain = run(base, tmp_path / "plain")
    never = run(
        replace(base, importance=ImportanceCorrection(rejection_bound=1e8)), tmp_path / "never"
    )
    weighed = run(
        replace(base, importance=ImportanceCorrection(spans=Turn(), tis_cap=2.0)), tmp_path / "w"
    )
    masked = run(
        replace(base, importance=ImportanceCorrection(rejection_bound=1.02)), tmp_path / "masked"
    )
    first = plain.read_metrics()[0]
    assert first["engine_mismatch_max"] > first["engine_mismatch"] > 0.01
    assert first["engine_kl"] > 1e-4 and first["engine_ratio/trajectory_max"] > 1.1
    assert timeless(never) == timeless(plain)  # a bound that nothing reaches changes no bit
    of_weights, of_mask = weighed.read_metrics()[0], masked.read_metrics()[0]
    assert of_weights["importance/max"] <= 2.0 and of_weights["importance/mean"] != 1.0
    assert 0 < of_mask["importance/masked_share"] < 1
    assert of_weights["gradient_norm"] != first["gradient_norm"] != of_mask["gradient_norm"]


def test_what_top_k_leaves_out_is_weighted_and_a_temperature_is_not(tmp_path: Path) -> None:
    config = letters(critic=NoCritic(), steps=1, importance=ImportanceCorrection(tis_cap=5.0))

    def first(name: str, sampling: Sampling) -> dict[str, Any]:
        rollout = replace(config.rollout, sampling=sampling)
        return run(replace(config, rollout=rollout), tmp_path / name).read_metrics()[0]

    warm = first("warm", Sampling(temperature=1.5))
    assert [warm["importance/max"], warm["importance/mean"]] == pytest.approx([1, 1], abs=1e-4)
    with pytest.warns(RuntimeWarning, match="top_p or top_k"):
        narrow = first("narrow", Sampling(top_k=2))
    assert narrow["importance/max"] < 1.0001 and narrow["importance/mean"] < 0.9
    assert (
        RunFolder.open(tmp_path / "warm").read_config()["config"]["importance"]["rejection_bound"]
        == "inf"
    )
