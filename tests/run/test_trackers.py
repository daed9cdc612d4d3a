from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from spanwise.run.trackers import TRACKERS, TrackerError, figures

LINES = [
    {"step": 1, "score": 0.5, "loss": None, "eval/greedy_score": 1},
    {"step": 2, "score": float("nan"), "note": "text"},
]


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_same_lines_reach_the_service(
    name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, asked = FakeRun(), {}
    module = types.ModuleType(name)

    def init(**options: Any) -> FakeRun:
        asked.update(options)
        return run

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    tracker = TRACKERS[name](tmp_path / "my-run", {"seed": 3})
    for line in LINES:
        tracker.write(line)
    tracker.close()
    assert run.logged == [(1, {"score": 0.5, "eval/greedy_score": 1}), (2, {})]
    assert run.finished and asked["name"] == "my-run" and asked["config"] == {"seed": 3}


def test_tensorboard_writes_events_that_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TRACKERS["tensorboard"](tmp_path, {"update": {"epochs": 2}})
    for line in LINES:
        tracker.write(line)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("score")] == [(1, 0.5)]
    assert events.Tags()["scalars"] == ["score", "eval/greedy_score"]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_one_line_with_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TrackerError) as error:
        TRACKERS[name].check()
    assert f"'spanwise[{name}]'" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_figure_is_left_out() -> None:
    assert figures({"step": 1, "critic_batch": 2, "x": float("inf"), "y": -1.0}) == {"y": -1.0}
