"""A run that cannot be started leaves no run folder; one folder has one writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spanwise.display import Display
from spanwise.models.loading import ModelError
from spanwise.rollout.failures import FailurePolicy, RunStopped
from spanwise.run.folder import RunError
from spanwise.run.lock import locked
from spanwise.run.trackers import Tracker, TrackerError
from spanwise.samplers.base import Engine, EngineError
from spanwise.samplers.embedded.engine import TransformersSampler
from spanwise.train import TrainConfig, train
from tests.train.letters import LetterModel, Letters
from tests.train.resumable import plain


@dataclass(frozen=True, kw_only=True)
class Unreadable(LetterModel):
    """Weights that turn out to be bad when they are read."""

    def load(self) -> Any:
        raise ModelError("the weights are torn")


@dataclass(frozen=True, kw_only=True)
class Interrupted(LetterModel):
    """Ctrl-C comes while the weights are read."""

    def load(self) -> Any:
        raise KeyboardInterrupt


@dataclass(frozen=True, kw_only=True)
class Unbuildable(Engine):
    """An engine that finds no room when it is built."""

    def build(self, model: Any, tokenizer: Any) -> Any:
        raise ValueError("no room for the engine")


def start(config: TrainConfig, folder: Path) -> None:
    train(config, recipe="r", folder=folder, display=Display())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": Unreadable()}, ModelError),
        ({"model": Interrupted()}, KeyboardInterrupt),
        ({"sampler": Unbuildable()}, ValueError),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    changes: dict[str, Any], error: type[BaseException], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    for folder in (tmp_path / "new", kept):
        with pytest.raises(error):
            start(replace(plain(), **changes), folder)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]
    locked(kept).release()  # no longer held


def test_a_tracker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Offline(Tracker):
        def __init__(self, folder: Path, config: Any) -> None:
            raise RuntimeError("no connection")

        def write(self, metrics: Any) -> None: ...
        def close(self) -> None: ...

    class Missing(Offline):
        package = "no_such_package"

    with pytest.raises(RuntimeError, match="no connection"):
        start(replace(plain(), trackers=(Offline,)), tmp_path / "run")
    with pytest.raises(TrackerError, match="no_such_package"):
        start(replace(plain(), trackers=(Missing,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    config = replace(plain(), env=Letters(right_from=object()))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="cannot be written down: object"):
        start(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_another_run_is_being_started_is_refused(tmp_path: Path) -> None:
    """The other has not written its configuration yet."""
    holder = locked(tmp_path / "run")
    with pytest.raises(RunError, match="another process is training in"):
        start(plain(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    holder.release()


def test_a_run_stopped_by_failures_says_how_to_go_on(tmp_path: Path) -> None:
    failures = FailurePolicy(max_excluded=0.0, backoff_s=0.0)
    config = replace(plain(), env=Letters(scored=False), failures=failures)
    with pytest.raises(RunStopped, match=rf"no judge.*--resume {tmp_path}"):
        start(config, tmp_path)
    with pytest.raises(RunStopped, match="no judge"):  # it can be gone on with
        train(config, recipe="r", folder=tmp_path, display=Display(), resume=True)


def test_a_run_whose_engine_takes_no_weights_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TransformersSampler, model: Any) -> None:
        raise EngineError("no space left for the weights")

    with monkeypatch.context() as patch:
        patch.setattr(TransformersSampler, "update_weights", full)
        with pytest.raises(RunStopped, match=rf"no space left.*--resume {tmp_path}"):
            start(plain(), tmp_path)
    log = train(plain(), recipe="r", folder=tmp_path, display=Display(), resume=True)
    assert log.read_metrics()[-1]["step"] == plain().steps


@pytest.mark.processes
def test_the_lock_ends_with_its_process_and_no_child_holds_it(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from spanwise.run.lock import locked\n"
        "lock = locked(Path(sys.argv[1]))\n"
        "if not os.fork(): print('held', flush=True)\n"  # outlives its parent, which is killed
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another process is training in"):
            locked(tmp_path)
        holder.kill()
        holder.wait()
        locked(tmp_path).release()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_file_system_without_locks_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    locked(tmp_path).release()
