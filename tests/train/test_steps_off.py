"""One step off: older weights sample, their trees are corrected, and nothing else differs."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.left_behind import differing, left_behind
from spanwise.display import Display
from spanwise.learn import optimizer_step
from spanwise.learn.critic import NoCritic
from spanwise.learn.importance_correction import ImportanceCorrection
from spanwise.learn.update import Update
from spanwise.run.folder import RunFolder
from spanwise.runtime.distributed import Processes, Ranks
from spanwise.train import Stopped, TrainConfig, train
from spanwise.train.config import Checkpoints
from spanwise.train.prefetch import Prefetcher
from spanwise.train.task_sampling import Sampled, draw_tasks
from tests.train.letters import letters
from tests.train.resumable import with_critic


def plain(**changes: Any) -> TrainConfig:
    config = letters(critic=NoCritic(), steps=3, importance=ImportanceCorrection(tis_cap=2.0))
    return replace(config, **changes)


def run(config: TrainConfig, folder: Path, *, resume: bool = False) -> RunFolder:
    return train(config, recipe="r", folder=folder, display=Display(), resume=resume)


def drawn(log: RunFolder, step: int) -> list[list[list[int]]]:
    """The tokens of every tree of a step."""
    return [[node["tokens"] for node in tree["nodes"]] for tree in log.read_trees(step)]


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(plain(max_off_policy_steps=1), tmp_path_factory.mktemp("off") / "run")


def test_each_step_is_drawn_from_the_weights_before_the_last_update(
    off: RunFolder, tmp_path: Path
) -> None:
    frozen = run(plain(update=Update(learning_rate=0.0)), tmp_path / "frozen")
    on = run(plain(), tmp_path / "on")
    assert drawn(off, 1) == drawn(on, 1)
    assert drawn(off, 2) == drawn(frozen, 2) != drawn(on, 2)  # the starting weights
    assert drawn(off, 3) != drawn(frozen, 3)  # those after the first update
    (first, second, third), (first_on, second_on, _) = off.read_metrics(), on.read_metrics()
    assert [line["staleness"] for line in (first, second, third)] == [0, 1, 1]
    same = {k: v for k, v in first.items() if not k.startswith("seconds/") and k != "staleness"}
    assert same == {k: first_on[k] for k in same}
    assert first["engine_mismatch"] < 1e-5 and second_on["engine_mismatch"] < 1e-5
    assert min(second["engine_mismatch"], third["engine_mismatch"]) > 1e-2
    assert first["importance/max"] < 1.001 < second["importance/max"] <= 2


def test_the_same_seed_gives_the_same_run(off: RunFolder, tmp_path: Path) -> None:
    again = run(plain(max_off_policy_steps=1), tmp_path / "again")
    assert differing(left_behind(off.folder), left_behind(again.folder)) == []


def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        with_critic(), importance=ImportanceCorrection(tis_cap=2.0), max_off_policy_steps=1, steps=6
    )
    config = replace(config, checkpoints=Checkpoints(every=2, keep=9))
    whole = run(config, tmp_path / "whole")
    calls = [0]

    def signalled(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # step 4 is drawn while step 3 is trained on
            os.kill(os.getpid(), signal.SIGTERM)
        return draw_tasks(*args)

    with monkeypatch.context() as patch:
        patch.setattr("spanwise.train.task_sampling.draw_tasks", signalled)
        with pytest.raises(Stopped):
            run(config, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").read_metrics()[-1]["step"] == 3
    run(config, tmp_path / "run", resume=True)
    first, second = left_behind(whole.folder), left_behind(tmp_path / "run")
    assert first.keys() <= second.keys()
    assert {name.rpartition("/")[0] for name in second.keys() - first.keys()} == {
        "checkpoints/step_00003"
    }
    assert first.keys().isdisjoint(differing(first, second))


def test_a_run_that_ended_in_an_update_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain(max_off_policy_steps=1, steps=5, checkpoints=Checkpoints(every=2))
    whole = run(config, tmp_path / "whole")
    real, calls = optimizer_step._apply, [0]

    def killed(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7:  # in step 4, of two minibatches each
            raise SystemExit
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(optimizer_step, "_apply", killed)
        with pytest.raises(SystemExit):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    assert differing(left_behind(whole.folder), left_behind(tmp_path / "run")) == []


def test_it_learns(tmp_path: Path) -> None:
    summary = run(plain(max_off_policy_steps=1, steps=20), tmp_path / "run").read_summary()
    assert summary["after"]["success"] > summary["before"]["success"] + 0.3


def test_what_fails_in_the_other_thread_is_raised_where_it_is_taken() -> None:
    ahead = Prefetcher()

    def fails() -> Sampled:
        raise RuntimeError("no engine")

    assert ahead.take() is None
    ahead.begin(fails)
    ahead.settle()
    with pytest.raises(RuntimeError, match="no engine"):
        ahead.take()
    ahead.close()


def test_without_a_correction_or_with_several_processes_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"importance.tis_cap, such as 2"):
        letters(critic=NoCritic(), max_off_policy_steps=1)
    monkeypatch.setattr(Processes, "join", lambda self, device: Ranks(rank=0, size=2))
    with pytest.raises(
        ValueError, match="max_off_policy_steps=1 is for one process, and there are 2"
    ):
        run(plain(max_off_policy_steps=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
