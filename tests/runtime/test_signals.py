"""Signals from outside, and two processes on one run folder."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from spanwise.display import Display
from spanwise.run.folder import RunError
from spanwise.run.lock import locked
from spanwise.runtime.signals import Stopped, StopSignals
from spanwise.train import train
from spanwise.train.checkpoint import checkpoint_folders
from tests.train.resumable import ROOT, child, plain


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_resume(
    number: signal.Signals, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = child(f"{ROOT}/tests/train/resumable.py:long", "--folder", str(folder))
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert f"spanwise train --resume {folder}" in said
    assert len(checkpoint_folders(folder / "checkpoints")) == 1


def until_said(process: subprocess.Popen[str], text: str) -> None:
    """Read on until a line holds the text; a process that does not say it is killed."""
    assert process.stdout is not None
    late = threading.Timer(120, process.kill)
    late.start()
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return late.cancel()
    pytest.fail(f"never said {text!r}: {''.join(said)}")


@pytest.mark.processes
def test_a_second_ctrl_c_ends_at_once_what_the_first_cannot(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = child(f"{ROOT}/tests/train/resumable.py:blocked", "--folder", str(folder))
    until_said(process, "blocking")
    process.send_signal(signal.SIGINT)
    until_said(process, "again to end at once")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_without_a_signal_nothing_stops() -> None:
    with StopSignals() as signals:
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            signals.check()


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    config = plain()
    train(config, recipe="r", folder=tmp_path, display=Display())
    (tmp_path / "summary.json").unlink()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    holder = locked(tmp_path)
    with pytest.raises(RunError, match="another process is training in"):
        train(config, recipe="r", folder=tmp_path, display=Display(), resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    holder.release()
    train(config, recipe="r", folder=tmp_path, display=Display(), resume=True)
    locked(tmp_path).release()  # a run that ended holds it no longer
