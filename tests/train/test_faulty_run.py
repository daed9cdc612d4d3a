"""A run with faulty tools, rewards and engine goes on, and its metrics count every fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from spanwise.cli import main
from spanwise.display import Display
from spanwise.envs.search.environment import MultiHopSearch
from spanwise.recipes.search import at2po_search
from spanwise.rollout import FailurePolicy
from spanwise.run.folder import RunFolder
from spanwise.testing import FaultPlan, FaultyEngine, FaultyReward, FaultyTool
from spanwise.tools.base import Tool
from spanwise.train import TrainConfig, train
from spanwise.train.evaluate import Evaluation

TRAINING = (1, 100)


@dataclass(frozen=True, kw_only=True)
class FaultySearch(MultiHopSearch):
    plan: FaultPlan

    @property
    def search_tool(self) -> Tool:  # type: ignore[override]
        return FaultyTool(tool=super().search_tool, plan=self.plan)


def test_every_fault_is_in_the_metrics_and_the_summary(tmp_path: Path) -> None:
    recipe = at2po_search()
    tool = FaultPlan(rates={"raise": 0.15, "crash": 0.05}, steps=TRAINING)
    reward = FaultPlan(rates={"raise": 0.1, "nan": 0.05}, seed=1, steps=TRAINING)
    engine = FaultPlan(rates={"raise": 1.0}, steps=(2, 2), attempts=1)
    config = replace(
        recipe,
        env=FaultyReward(env=FaultySearch(plan=tool, train_questions=200), plan=reward),
        sampler=FaultyEngine(engine=recipe.sampler, plan=engine),
        failures=FailurePolicy(backoff_s=0.0),
        evaluation=Evaluation(num_tasks=4),
        steps=2,
        prompts_per_step=3,
    )
    log = train(config, recipe="faulty", folder=tmp_path / "run", display=Display())
    counted = Counter[str]()
    for line in log.read_metrics():
        counted.update({name: count for name, count in line.items() if "failures/" in name})
        assert line["excluded"] == line.get("failures/reward_error", 0) + line.get(
            "failures/reward_nan", 0
        )
        assert line["gradient_norm"] > 0
    assert counted == {
        "failures/tool_error": tool.struck["raise"],
        "failures/tool_crash": tool.struck["crash"],
        "failures/reward_error": reward.struck["raise"],
        "failures/reward_nan": reward.struck["nan"],
        "failures/engine_error": engine.struck["raise"],
    }
    assert min(counted.values()) > 0
    summary = log.read_summary()["failures"]
    assert {f"failures/{kind}": n for kind, n in summary.items() if kind != "retries"} == counted


def failing_search() -> TrainConfig:
    """One step in which every second search fails."""
    recipe = at2po_search()
    tool = FaultPlan(rates={"raise": 0.5}, steps=TRAINING)
    return replace(
        recipe,
        env=FaultySearch(plan=tool, train_questions=200),
        failures=FailurePolicy(retries=0),
        evaluation=Evaluation(num_tasks=4),
        steps=1,
        prompts_per_step=6,
    )


def test_the_command_line_decides_what_becomes_of_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"{__file__}:failing_search", "--failures.max-excluded"]
    assert main([*words, "1", "--folder", str(tmp_path / "shown")]) == 0
    [line] = RunFolder.open(tmp_path / "shown").read_metrics()
    assert line["failures/tool_error"] > 0 and line["excluded"] == 0

    hidden = ["--failures.show", "tool_timeout", "--folder", str(tmp_path / "hidden")]
    assert main([*words, "1", *hidden]) == 0
    [line] = RunFolder.open(tmp_path / "hidden").read_metrics()
    assert line["failures/tool_error"] > 0 and line["excluded"] > 0

    capsys.readouterr()
    assert main([*words, "0.1", "--folder", str(tmp_path / "stopped")]) == 2
    assert "tool calls failed, more than failures.max_excluded = 0.1" in capsys.readouterr().err
