"""The measurement of whole steps measures steps that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.full_step import METHODS, measured, settings, write_model
from spanwise.models.loading import Model


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_a_random_model_trains(method: str, tmp_path: Path) -> None:
    write_model(tmp_path, "tiny", 1024)
    model = Model(path=str(tmp_path))
    row = measured(settings(method, model, prompts=2, turn_tokens=8), method)
    assert row["branches"] == {"at2po": 2 * 22, "sae": 2 * 8}[method]
    assert row["sampled_tokens"] > 0 and row["trained_tokens"] >= row["sampled_tokens"]
    assert {"rollout", "scoring", "update"} <= row["seconds"].keys()
    assert row["parameters"] == model.num_parameters()
    assert (row["device"], row["peak_gpu_mib"]) == ("cpu", None) or row["peak_gpu_mib"] > 0
