"""Engine and trainer speak of the same distribution, whatever the temperature."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanwise.display import Display
from spanwise.recipes.chain import grpo_chain
from spanwise.samplers.base import Sampling
from spanwise.train import train
from spanwise.train.evaluate import Evaluation


def first_step(folder: Path, sampling: Sampling) -> dict[str, Any]:
    config = grpo_chain()
    config = replace(
        config,
        rollout=replace(config.rollout, num_chains=4, sampling=sampling),
        evaluation=Evaluation(num_tasks=1),
        steps=1,
        prompts_per_step=4,
    )
    return train(config, recipe="r", folder=folder, display=Display()).read_metrics()[-1]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_the_engines_log_probs_are_the_trainers(tmp_path: Path, temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = first_step(tmp_path / "run", Sampling(temperature=temperature))
    ratios = [f"engine_ratio/{kind}_{end}" for kind in ("token", "turn") for end in ("min", "max")]
    assert [step[name] for name in ratios] == pytest.approx([1.0] * 4, abs=1e-5)
    assert 0 < step["engine_mismatch"] <= step["engine_mismatch_max"] < 1e-5


def test_what_leaves_tokens_out_is_warned_of_and_shows(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"top_p or top_k.*fewer tokens"):
        step = first_step(tmp_path / "run", Sampling(top_p=0.8))
    assert step["engine_mismatch"] > 1e-3 and step["engine_ratio/token_max"] < 1.0001
