"""Checkpoints: everything that a run goes on from, whole or not there at all.

    checkpoints/step_00010/
      model.safetensors, config.json, …     the policy in Hugging Face format, its tokenizer
      critic.safetensors                    the critic's own weights
      state-00001-of-00002.safetensors, …   weights and optimizer state, one file a process
      state.json                            step, counts, length of the metrics
      manifest.json                         schema, settings, size and SHA-256 of each file

A run goes on from the state files; policy and critic lie there for others to read. No random
generator is saved: every draw is seeded by what it is for (see ``runtime.seeds``). A folder is
written beside its place and renamed once all of it is on the disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from spanwise.errors import SpanwiseError, one_line
from spanwise.learn.learner import Learner
from spanwise.models.critic import CRITIC_FILE
from spanwise.models.lora import saved_state
from spanwise.models.sharding import gather
from spanwise.run.folder import RunError, writing
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.train.state import RunState
from spanwise.train.state_files import StateFiles, state_file, training_state, write_state

SCHEMA = 2
MANIFEST, STATE = "manifest.json", "state.json"
PARTIAL = ".partial"
UNUSED = ".unused"


class CheckpointError(RunError):
    """A checkpoint cannot be written or used; the message says why and what to do."""


def save_weights(folder: Path, learner: Learner, tokenizer: Any) -> None:
    """Write the policy in Hugging Face format, and the critic; all weights as safetensors.

    Every rank has to call it. The main one writes, and the files are those that a run of one
    process would write.

    Raises:
      CheckpointError: on all ranks, if the folder cannot be written.
    """
    ranks, weights = learner.ranks, _Weights.of(learner)
    with _writing_together(folder, ranks):
        if ranks.is_main:
            _begin(folder)
            weights.save(partial_path(folder))
            try:
                tokenizer.save_pretrained(partial_path(folder))
            except Exception as error:
                _warn(f"{folder} has no tokenizer", error)
            _put_in_place(folder)


def write_checkpoint(
    folder: Path, learner: Learner, tokenizer: Any, state: RunState, settings: Mapping[str, Any]
) -> None:
    """Write a checkpoint of a run between two steps.

    Every rank has to call it, and writes the part of the training state that it holds.

    Raises:
      CheckpointError: on all ranks, if one of them cannot write; an existing checkpoint is
        then left as it was.
    """
    ranks, weights, partial = learner.ranks, _Weights.of(learner), partial_path(folder)
    own: dict[str, Any] = {}
    with _writing_together(folder, ranks):  # the others write once all of these are hashed
        if ranks.is_main:
            _begin(folder)
            weights.save(partial)
            tokenizer.save_pretrained(partial)
            skips = {"skips_in_a_row": learner.nonfinite.in_a_row}
            _write(partial / STATE, dataclasses.asdict(state) | skips)
            own = {path.name: fingerprint(path) for path in partial.iterdir() if path.is_file()}
    with _writing_together(folder, ranks):
        file, tensors = partial / state_file(ranks.rank, ranks.size), dict[str, Tensor]()
        for part in _parts(learner):
            tensors |= training_state(*part)
        write_state(file, tensors, leads=ranks.is_main)
        _flush(file)
        own[file.name] = fingerprint(file)
    files = {name: value for found in ranks.gather(own) for name, value in found.items()}
    with _writing_together(folder, ranks):
        if ranks.is_main:
            manifest = {"schema": SCHEMA, "settings": settings_digest(settings), "files": files}
            _write(partial / MANIFEST, manifest)
            _put_in_place(folder)


def read_checkpoint(folder: Path, learner: Learner, settings: Mapping[str, Any]) -> RunState:
    """Restore the learner to the state that a checkpoint holds.

    Every rank has to call it, and reads the part of the training state that it is going to
    hold, however many ranks wrote it.
    The learner is changed after the files have been verified.

    Raises:
      CheckpointError: on all ranks, if a file is missing or damaged, or the checkpoint belongs
        to another version, other settings or another model.
    """
    names = check_files(folder, settings, learner.ranks)
    record = json.loads((folder / STATE).read_text(encoding="utf-8"))
    files = StateFiles([folder / name for name in names if name.startswith("state-")])
    try:
        for part in _parts(learner):
            files.load(*part)
    except SpanwiseError as error:
        raise CheckpointError(f"{folder} does not fit this run: {error}") from error
    learner.nonfinite.in_a_row = record.pop("skips_in_a_row")
    return RunState(**record)


def check_files(folder: Path, settings: Mapping[str, Any], ranks: Ranks = ALONE) -> list[str]:
    """Verify a checkpoint against its manifest; each rank reads its share of the files.

    Returns:
      The names of the files, sorted.

    Raises:
      CheckpointError: on all ranks, naming a file that is not as it was written.
    """
    files, fault = dict[str, Any](), ""
    try:
        files = _manifest(folder, settings)
        for name in sorted(files)[ranks.rank :: ranks.size]:
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name} is missing")
            if fingerprint(folder / name) != files[name]:
                raise CheckpointError(f"{folder / name} is damaged: it is not what was written")
    except (OSError, CheckpointError) as error:
        fault = str(error)
    if faults := [found for found in ranks.gather(fault) if found]:
        raise CheckpointError(faults[0])
    return sorted(files)


def _manifest(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Size and SHA-256 of each file of a checkpoint, by name."""
    path = folder / MANIFEST
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        schema, digest = manifest["schema"], manifest["settings"]
        files = {Path(name).name: value for name, value in manifest["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if schema != SCHEMA:
        writer = "spanwise 0.1" if schema == 1 else "another version of spanwise"
        raise CheckpointError(
            f"{folder} was written by {writer} (schema {schema}, this version reads {SCHEMA}); "
            "go on with the version that wrote it"
        )
    if digest != settings_digest(settings):
        raise CheckpointError(f"{folder} belongs to a run of other settings")
    return files


def newest_usable(
    parent: Path, learner: Learner, settings: Mapping[str, Any], tell: Callable[[str], None]
) -> RunState | None:
    """Restore the learner to the newest checkpoint that can be used.
    ``tell`` is called with a sentence for each one that is passed over; None if there are none.

    Raises:
      CheckpointError: if there are some and none can be used.
    """
    folders = checkpoint_folders(parent)
    for number, folder in enumerate(folders):
        try:
            return read_checkpoint(folder, learner, settings)
        except CheckpointError as error:
            if number + 1 == len(folders):
                raise CheckpointError(
                    f"{error}; no earlier checkpoint is left. Remove {parent} to train the run "
                    "again from its beginning"
                ) from error
            tell(
                f"{error}; it becomes {folder.name}{UNUSED}, and the run goes on from the one "
                f"before, {folders[number + 1].name}"
            )
    return None


def settings_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of a run's settings, wherever its folder lies."""
    named = {name: value for name, value in settings.items() if name != "folder"}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()


def checkpoint_folders(parent: Path) -> list[Path]:
    """The checkpoints of a run, newest first.

    Checkpoints of fitting the critic alone, ``critic_N``, are older than any ``step_N``.
    """
    found: list[tuple[str, int, Path]] = []
    for path in parent.iterdir() if parent.is_dir() else ():
        if match := re.fullmatch(r"(critic|step)_(\d+)", path.name):
            found.append((match[1], int(match[2]), path))
    return [path for _, _, path in sorted(found, reverse=True)]


def remove_old(parent: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and the one that scored best."""
    folders = checkpoint_folders(parent)
    scores = {folder: score for folder in folders if (score := _score(folder)) is not None}
    best = max(scores, key=lambda folder: scores[folder], default=None)
    for folder in folders[keep:]:
        if folder != best and (folder / MANIFEST).is_file() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def quarantine(parent: Path, used: Path) -> None:
    """Rename the checkpoints that are newer than the one in use: they turned out unusable.

    They would otherwise count among the newest, and good ones would be removed instead.
    """
    folders = checkpoint_folders(parent)
    for folder in folders[: folders.index(used)] if used in folders else ():
        unused = folder.with_name(folder.name + UNUSED)
        shutil.rmtree(unused, ignore_errors=True)
        with writing(unused):
            folder.rename(unused)


def remove_partial(parent: Path) -> None:
    """Remove what is left of a checkpoint whose writing was interrupted by a kill."""
    for folder in parent.glob(f"*{PARTIAL}"):
        shutil.rmtree(folder, ignore_errors=True)


def partial_path(folder: Path) -> Path:
    """Where a folder is written before it is given its name."""
    return folder.with_name(folder.name + PARTIAL)


@contextmanager
def _writing_together(folder: Path, ranks: Ranks) -> Generator[None]:
    """If one rank cannot write, have all raise the same error and remove what was written."""
    fault, cause = "", None
    try:
        yield
    except Exception as error:  # a model's or a tokenizer's own code raises what it likes
        fault, cause = one_line(error), error
    if faults := [found for found in ranks.gather(fault) if found]:
        if ranks.is_main:
            shutil.rmtree(partial_path(folder), ignore_errors=True)
        raise CheckpointError(
            f"cannot write {folder}: {faults[0]}; earlier checkpoints are as they were"
        ) from cause


def _begin(folder: Path) -> None:
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _put_in_place(folder: Path) -> None:
    """Have the disk hold everything in a folder, then give it its name."""
    partial = partial_path(folder)
    for path in (*partial.iterdir(), partial):
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _flush(folder.parent)


def _parts(learner: Learner) -> Iterator[tuple[str, Any, torch.optim.Optimizer]]:
    """Each model that is trained, with its optimizer."""
    yield "policy", learner.model, learner.optimizer
    if learner.critic is not None:
        yield "critic", learner.critic.model, learner.critic.optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Weights:
    """The whole weights of a learner, for other programs; empty on all but the main rank."""

    model: Any
    policy: dict[str, Tensor]
    critic: dict[str, Tensor]

    @classmethod
    def of(cls, learner: Learner) -> _Weights:
        """Gather the weights one at a time; every rank has to call it."""
        leads, model = learner.ranks.is_main, learner.model
        critic = {} if learner.critic is None else learner.critic.model.weights(keep=leads)
        return cls(model=model, policy=gather(saved_state(model), keep=leads), critic=critic)

    def save(self, folder: Path) -> None:
        """Write the weights; what else the model cannot write costs a warning, not the weights."""
        try:
            self.model.save_pretrained(folder, state_dict=self.policy)
        except (OSError, SafetensorError):
            raise
        except Exception as error:
            name = "adapter_model" if hasattr(self.model, "peft_config") else "model"
            apart = {key: tensor.clone().contiguous() for key, tensor in self.policy.items()}
            save_file(apart, folder / f"{name}.safetensors", metadata={"format": "pt"})
            _warn(f"beside the weights, {folder.name.removesuffix(PARTIAL)} is not whole", error)
        if self.critic:
            save_file(self.critic, folder / CRITIC_FILE)


def check_saving(model: Any, tokenizer: Any) -> None:
    """Write, and throw away, all of a model but its weights, as a checkpoint will.

    Raises:
      CheckpointError: if it cannot be written.
    """
    parts = {
        "config": model.config,
        "generation_config": getattr(model, "generation_config", None),
        "tokenizer": tokenizer,
    }
    for name, part in parts.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                if part is not None:
                    part.save_pretrained(Path(folder))
        except Exception as error:  # what a library's or the model's own code raises
            raise CheckpointError(
                f"the model's {name} can be read and not written again, so no checkpoint could "
                f"be: {one_line(error)}; mend its file"
            ) from error


def _warn(what: str, error: Exception) -> None:
    warnings.warn(f"{what}: {one_line(error)}", RuntimeWarning, stacklevel=4)


def _score(folder: Path) -> float | None:
    """The held-out score of a checkpoint, if it has one."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))["held_out"]
    except (OSError, ValueError, LookupError):
        return None


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's size and SHA-256, as in the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
