"""A run that hangs is stopped by its watchdog like one that is stopped by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanwise.display import Display
from spanwise.envs.base import Reply, Task, Turn
from spanwise.learn.critic import NoCritic
from spanwise.rollout.calls import current_call
from spanwise.runtime.watchdog import Watchdog
from spanwise.train import Stopped, train
from tests.train.letters import Letters, letters


@dataclass(frozen=True, kw_only=True)
class Hangs(Letters):
    """Rewards of step 2 never come while the file is there."""

    file: Path

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        call = current_call()
        if call is not None and call.step == 2 and self.file.exists():
            await asyncio.Event().wait()
        return await super().reply(task, turns)


def test_it_says_what_it_waited_for_and_can_be_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "run", tmp_path / "hang"
    file.touch()
    watchdog = Watchdog(report_after_s=1.0, stop_after_s=5.0)
    config = letters(critic=NoCritic(), env=Hangs(file=file), watchdog=watchdog)
    with pytest.raises(Stopped, match="SIGTERM"):
        train(config, recipe="letters", folder=folder, display=Display())
    told = capfd.readouterr().err
    assert "spanwise: waiting since" in told and "spanwise: stopping: waiting since" in told
    assert "the environment, step 2, task train-" in told and "and for 63 more" in told
    file.unlink()
    log = train(config, recipe="letters", folder=folder, display=Display(), resume=True)
    assert [line["step"] for line in log.read_metrics()] == [1, 2]
