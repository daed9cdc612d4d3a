"""AT²PO through vLLM from the command line: train, and answer questions from the run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanwise.cli import main
from spanwise.run.folder import RunFolder

pytestmark = pytest.mark.vllm

SMALL = [
    *("--steps", "2"),
    *("--prompts-per-step", "4"),
    *("--evaluation.num-tasks", "12"),
    *("--evaluation.every", "0"),
]


def test_at2po_trains_through_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    vllm = ["--sampler", "vllm", "--sampler.no-compiled"]
    assert main(["train", "at2po_search", *vllm, *SMALL, "--folder", str(folder)]) == 0
    log = RunFolder.open(folder)
    assert log.read_config()["config"]["sampler"]["class"] == "VLLMEngine"
    metrics = log.read_metrics()
    assert [m["branches"] for m in metrics] == [40, 40]
    for line in metrics:  # step 2 draws from weights that step 1 has moved
        assert line["gradient_norm"] > 0 and line["engine_mismatch"] < 1e-4
        assert line["engine_mismatch_max"] < 1e-3
    assert main(["eval", str(folder), "--num-tasks", "12"]) == 0
    assert "100" in capsys.readouterr().out  # greedy answers are right
