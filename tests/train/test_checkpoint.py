"""Checkpoints are whole, of this run and this version, or refused by name."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bench.left_behind import differing, left_behind
from spanwise.display import Display
from spanwise.rollout.journal import StepJournal
from spanwise.run.folder import RunError, RunFolder
from spanwise.runtime.distributed import Ranks
from spanwise.runtime.signals import Stopped, StopSignals
from spanwise.train import loop, train
from spanwise.train.checkpoint import (
    CheckpointError,
    checkpoint_folders,
    fingerprint,
    partial_path,
    remove_old,
    write_checkpoint,
)
from spanwise.train.config import Checkpoints
from spanwise.train.state import Run, RunState
from spanwise.train.state_files import state_file
from spanwise.tree import Node
from tests.learners import new_learner
from tests.tiny import tiny_model
from tests.train.letters import LetterTokenizer
from tests.train.resumable import plain

STATE_FILE = state_file(0, 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(plain(), recipe="r", folder=folder, display=Display())
    return folder


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The run with checkpoints of steps 4 and 6, before its last measurement."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "final")
    return folder


def resumed(folder: Path) -> RunFolder:
    return train(plain(), recipe="r", folder=folder, display=Display(), resume=True)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {name: value}))

    return change


def of_another_model(folder: Path) -> None:
    """A weight fewer, and all files as the manifest says."""
    tensors = load_file(folder / STATE_FILE)
    del tensors["policy/model.norm.weight/weight"]
    save_file(tensors, folder / STATE_FILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][STATE_FILE] = fingerprint(folder / STATE_FILE)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors is damaged"),
        (lambda f: flip(f / STATE_FILE), f"{STATE_FILE} is damaged"),
        (lambda f: (f / STATE_FILE).unlink(), f"{STATE_FILE} is missing"),
        (lambda f: (f / "state.json").write_text(""), "state.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is damaged"),
        (edit("schema", 1), "was written by spanwise 0.1 (schema 1, this version reads 2)"),
        (edit("schema", 99), "was written by another version of spanwise (schema 99"),
        (edit("settings", "0"), "belongs to a run of other settings"),
        (edit("files", 3), "manifest.json is damaged"),
        (
            of_another_model,
            "policy/model.norm.weight has the shape [16] here, None there",
        ),
    ],
)
def test_a_bad_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], None],
    message: str,
    stopped: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(stopped / "checkpoints" / "step_00006")
    resumed(stopped)
    said = " ".join(capsys.readouterr().out.split())
    assert message in said.replace("/ ", "/") and "the one before, step_00004" in said
    assert (stopped / "checkpoints" / "step_00006.unused").is_dir()
    assert differing(left_behind(finished), left_behind(stopped)) == []


def test_with_no_good_checkpoint_the_run_stops_and_says_what_to_do(stopped: Path) -> None:
    for folder in checkpoint_folders(stopped / "checkpoints"):
        flip(folder / "model.safetensors")
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"step_00004.*damaged.*Remove .*checkpoints"):
        resumed(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_of_no_use_is_not_kept_in_place_of_a_good_one(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(stopped / "checkpoints" / "step_00006" / "model.safetensors")

    real = loop.train_step

    def then_stopped(run: Run, step: int, signals: StopSignals) -> dict[str, Any]:
        metrics = real(run, step, signals)
        signals.received = signal.SIGTERM
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", then_stopped)
        with pytest.raises(Stopped):
            resumed(stopped)
    names = [folder.name for folder in checkpoint_folders(stopped / "checkpoints")]
    assert names == ["step_00005", "step_00004"]


@pytest.mark.parametrize("shift", [0.0, -5.0])  # the return of a game may well be negative
def test_the_newest_and_the_best_are_kept(tmp_path: Path, shift: float) -> None:
    scores = {2: 0.1 + shift, 4: 0.9 + shift, 6: None, 8: 0.3 + shift, 10: 0.2 + shift}
    for step, score in scores.items():
        folder = tmp_path / f"step_{step:05d}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"held_out": score}))
        (folder / "manifest.json").write_text("{}")
    remove_old(tmp_path, 2)
    assert [p.name for p in checkpoint_folders(tmp_path)] == [
        "step_00010", "step_00008", "step_00004",
    ]  # fmt: skip


def test_the_main_process_has_hashed_its_files_before_another_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def gather(self: Ranks, own: Any) -> list[Any]:
        if (partial := partial_path(tmp_path / "c")).exists():
            seen.append({path.name for path in partial.iterdir()})
        return [own]

    learner, letters = new_learner(tiny_model(8)), LetterTokenizer()
    monkeypatch.setattr(Ranks, "gather", gather)
    write_checkpoint(tmp_path / "c", learner, letters, RunState(), {})
    assert {"model.safetensors", "state.json"} <= seen[0] and STATE_FILE not in seen[0]
    assert STATE_FILE in seen[1]


def test_without_scores_only_the_newest_are_kept(finished: Path) -> None:
    names = [p.name for p in checkpoint_folders(finished / "checkpoints")]
    assert names == ["step_00006", "step_00004"]
    assert not list((finished / "journal").iterdir())


def test_what_a_killed_write_left_is_removed(stopped: Path, finished: Path) -> None:
    (stopped / "checkpoints" / "step_00006.partial").mkdir()
    resumed(stopped)
    assert differing(left_behind(finished), left_behind(stopped)) == []
    assert not list((stopped / "checkpoints").glob("*.partial"))


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = replace(plain(), steps=1, checkpoints=Checkpoints(every=0))
    train(config, recipe="r", folder=tmp_path / "run", display=Display())
    (tmp_path / "run" / "summary.json").unlink()
    journal = tmp_path / "run" / "journal" / "00001.jsonl"
    journal.write_text("{}\n" + journal.read_text())
    with pytest.raises(RunError, match=r"00001\.jsonl is damaged.*sampled again"):
        train(config, recipe="r", folder=tmp_path / "run", display=Display(), resume=True)


def test_a_file_that_the_disk_cuts_short_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may not grow beyond 4 kB while the second checkpoint is written."""
    real, limit = loop.save_state, resource.getrlimit(resource.RLIMIT_FSIZE)

    def cut_short(run: Run) -> None:
        if run.state.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        try:
            real(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", cut_short)
        with pytest.raises(CheckpointError, match=r"cannot write .*step_00004"):
            train(plain(), recipe="r", folder=tmp_path, display=Display())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00002"]
    assert resumed(tmp_path).read_metrics()[-1]["step"] == 6


def test_a_journal_that_the_disk_cuts_short_is_named(tmp_path: Path) -> None:
    journal, limit = StepJournal(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    journal.lookup(1, "task", (0,), "")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        with pytest.raises(RunError, match=r"cannot write .*00001\.jsonl: File too large"):
            journal.write(1, "task", Node(path=(0,), stop="end", reward=1.0, text="x" * 10_000), "")
        journal.close()  # raises nothing that would hide that
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_tokenizer_that_a_full_disk_does_not_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package tokenizers raises a plain ``Exception``."""

    def full(self: LetterTokenizer, folder: Path) -> None:
        if folder.parent.name == "checkpoints":
            raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(LetterTokenizer, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*step_00002: .*No space left"):
        train(plain(), recipe="r", folder=tmp_path, display=Display())
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_metrics_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "metrics_path", Path("/dev/full"))
    with pytest.raises(RunError, match=r"cannot write /dev/full: No space left"):
        train(plain(), recipe="r", folder=tmp_path, display=Display())


def test_a_folder_of_checkpoints_that_cannot_be_written_is_named(stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "checkpoints").write_text("a file in its place")
    (stopped / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoints/step_00002"):
        resumed(stopped)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_that_may_not_be_written_is_named(stopped: Path) -> None:
    (stopped / "lock").chmod(0o444)
    with pytest.raises(RunError, match=r"cannot write .*lock: Permission denied"):
        resumed(stopped)


def test_what_cannot_be_saved_is_refused_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LetterTokenizer, folder: Path) -> None:
        raise ValueError("odd settings")

    monkeypatch.setattr(LetterTokenizer, "save_pretrained", refuse)
    with pytest.raises(CheckpointError, match=r"tokenizer can be read and not written .*odd"):
        train(plain(), recipe="r", folder=tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_weights_outlive_whatever_else_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LetterTokenizer, folder: Path) -> None:
        if folder.parent.name == "checkpoints":
            raise ValueError("odd settings")

    def no_config(self: PreTrainedModel, folder: Path, **_: Any) -> None:
        raise ValueError("odd config")

    monkeypatch.setattr(LetterTokenizer, "save_pretrained", refuse)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", no_config)
    config = replace(plain(), checkpoints=Checkpoints(every=0))
    with pytest.warns(RuntimeWarning, match="odd"):
        log = train(config, recipe="r", folder=tmp_path, display=Display())
    assert (log.checkpoint_path("final") / "model.safetensors").is_file()
    assert log.summary_path.is_file()


def test_a_turn_of_the_journal_is_for_what_the_model_saw_alone(tmp_path: Path) -> None:
    journal, node = StepJournal(tmp_path), Node(path=(0,), stop="end", reward=1.0)
    journal.lookup(1, "task", (0,), "old")
    journal.write(1, "task", node, "old")
    journal.close()
    assert journal.lookup(1, "task", (0,), "old") == node
    assert journal.lookup(1, "task", (0,), "new") is None
