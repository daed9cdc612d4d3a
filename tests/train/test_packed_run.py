"""Whole runs on packed trees are the runs on plain rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spanwise.cli import main
from spanwise.runlog import RunLog

SMALL = ["--steps", "3", "--prompts-per-step", "4", "--evaluation.num-tasks", "4"]
AS_LAID_OUT = {"packed", "computed_to_total"}


def metrics(folder: Path, recipe: str, packing: str, *options: str) -> list[dict[str, Any]]:
    run = folder / packing
    choice = ["--update.packing", packing]
    assert main(["train", recipe, *SMALL, *choice, *options, "--folder", str(run)]) == 0
    return [
        {k: v for k, v in line.items() if not k.startswith("seconds/")}
        for line in RunLog.open(run).read_metrics()
    ]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("at2po_search", []), ("sae_chain", ["--critic.pretraining-steps", "1"])],
)
def test_the_metrics_of_a_run_are_the_same(tmp_path: Path, recipe: str, options: list[str]) -> None:
    packed = metrics(tmp_path, recipe, "tree", *options)
    rows = metrics(tmp_path, recipe, "rows", *options)
    assert any(line["packed"] == 1 for line in packed)
    assert all(line["packed"] == 0 for line in rows)
    for found, expected in zip(packed, rows, strict=True):
        assert found.keys() == expected.keys()
        for name in found.keys() - AS_LAID_OUT:
            # Adam turns a gradient that is 0 but for rounding into a step of full length.
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
