"""Checkpoints: all that a run goes on from, whole or not there at all.

    checkpoints/step_00010/
      model.safetensors, config.json, …   the policy in Hugging Face format, its tokenizer
      optimizer.safetensors               AdamW's moments, by parameter name
      critic.safetensors, critic_optimizer.safetensors
      state.json                          step, counts, KL coefficient, length of the metrics
      manifest.json                       schema, settings, size and SHA-256 of each file

No generator is saved: every draw is seeded by what it is for (see ``rollout.seeds``).
A folder is written beside its place and renamed once all of it is on the disk.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spanwise.errors import SpanwiseError
from spanwise.learn.learner import Learner
from spanwise.models.critic import CRITIC_FILE
from spanwise.models.lora import ADAPTER_CONFIG
from spanwise.models.sharding import shard_like, whole
from spanwise.run.folder import RunError, writing
from spanwise.train.state import RunState

SCHEMA = 1
MANIFEST, STATE = "manifest.json", "state.json"
OPTIMIZER, CRITIC_OPTIMIZER = "optimizer.safetensors", "critic_optimizer.safetensors"
PARTIAL = ".partial"
UNUSED = ".unused"
UNFIT = (OSError, SafetensorError, LookupError, TypeError, ValueError, OverflowError, RuntimeError)
"""What a file with the right hash and the wrong content may raise."""


class CheckpointError(RunError):
    """A checkpoint cannot be written or used; the message says why and what to do."""


def save_weights(folder: Path, learner: Learner, tokenizer: Any) -> None:
    """The policy in Hugging Face format, and the critic; all weights as safetensors.

    Every rank has to call it, the leading one writes: the files are those of one process.

    Raises:
      CheckpointError: if the folder cannot be written.
    """
    weights = _Weights.of(learner)
    if learner.ranks.is_main:
        with atomic_directory(folder):
            weights.save(partial_path(folder), tokenizer)


def write_checkpoint(
    folder: Path, learner: Learner, tokenizer: Any, state: RunState, settings: Mapping[str, Any]
) -> None:
    """Write down a run between two steps.

    Every rank has to call it, the leading one writes: the files are those of one process.

    Args:
      folder: Where; one that is there is replaced.
      learner: Weights, optimizers and the KL coefficient.
      tokenizer: Saved beside the policy.
      state: How far the run is.
      settings: The resolved configuration.

    Raises:
      CheckpointError: if it cannot be written; what was there before still is.
    """
    weights, critic = _Weights.of(learner), learner.critic
    moments = {OPTIMIZER: _optimizer_tensors(learner.model, learner.optimizer)}
    if critic is not None:
        moments[CRITIC_OPTIMIZER] = _optimizer_tensors(critic.model, critic.optimizer)
    if not learner.ranks.is_main:
        return
    with atomic_directory(folder):
        partial = partial_path(folder)
        weights.save(partial, tokenizer)
        for name, tensors in moments.items():
            save_file(tensors, partial / name)
        record = {
            **dataclasses.asdict(state),
            "kl_coefficient": learner.kl.coefficient,
            "skips_in_a_row": learner.nonfinite.in_a_row,
        }
        _write(partial / STATE, record)
        files = {path.name: fingerprint(path) for path in sorted(partial.iterdir())}
        manifest = {"schema": SCHEMA, "settings": settings_digest(settings), "files": files}
        _write(partial / MANIFEST, manifest)


def read_checkpoint(folder: Path, learner: Learner, settings: Mapping[str, Any]) -> RunState:
    """Bring the learner to where a checkpoint was written; each rank reads the files.

    Args:
      folder: Of the checkpoint.
      learner: New, of the same settings; changed in place once the files are found whole.
      settings: The resolved configuration.

    Raises:
      CheckpointError: if a file is missing or damaged, or the checkpoint is of another
        version or of other settings.
    """
    check_files(folder, settings)
    try:
        record = dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
        coefficient = float(record.pop("kl_coefficient"))
        kl = dataclasses.replace(learner.kl, coefficient=coefficient)
        nonfinite = int(record.pop("skips_in_a_row"))
        state = RunState(**record)
        state.check()
        learner.load_policy(lambda policy: _load_policy(policy, folder))
        _load_optimizer(folder / OPTIMIZER, learner.model, learner.optimizer)
        if (critic := learner.critic) is not None:
            critic.model.restore(folder)
            _load_optimizer(folder / CRITIC_OPTIMIZER, critic.model, critic.optimizer)
    except UNFIT as error:
        raise CheckpointError(f"{folder} does not fit this run: {error}") from error
    learner.kl = kl
    learner.nonfinite.in_a_row = nonfinite
    return state


def check_files(folder: Path, settings: Mapping[str, Any]) -> None:
    """Compare a checkpoint with its manifest.

    Raises:
      CheckpointError: naming the first file that is not as it was written.
    """
    path = folder / MANIFEST
    try:
        manifest: Any = dict(json.loads(path.read_text(encoding="utf-8")))
        schema, digest = manifest["schema"], manifest.get("settings")
        files: dict[str, Any] = dict(manifest.get("files", {}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"{folder} was written with schema {schema}, this version reads {SCHEMA}; go on "
            "with the version of spanwise that wrote it"
        )
    if digest != settings_digest(settings):
        raise CheckpointError(f"{folder} belongs to a run of other settings")
    for name, wanted in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if fingerprint(file) != wanted:
            raise CheckpointError(f"{file} is damaged: it is not what was written")


def newest_usable(
    parent: Path, learner: Learner, settings: Mapping[str, Any], tell: Callable[[str], None]
) -> RunState | None:
    """Bring the learner to the newest checkpoint that can be used.

    Args:
      parent: The run's folder of checkpoints.
      learner: New, of the same settings.
      settings: The resolved configuration.
      tell: Is told of each checkpoint that is passed over, and why.

    Returns:
      None if there are no checkpoints.

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
    """Names the settings of a run, wherever its folder lies."""
    named = {name: value for name, value in settings.items() if name != "folder"}
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()


def checkpoint_folders(parent: Path) -> list[Path]:
    """The checkpoints of a run, newest first.

    Those of fitting the critic alone, ``critic_N``, are older than all of ``step_N``.
    """
    found: list[tuple[str, int, Path]] = []
    for path in parent.iterdir() if parent.is_dir() else ():
        if match := re.fullmatch(r"(critic|step)_(\d+)", path.name):
            found.append((match[1], int(match[2]), path))
    return [path for _, _, path in sorted(found, reverse=True)]


def remove_old(parent: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and the one that scored best."""
    older = checkpoint_folders(parent)[keep:]
    scores = {folder: _score(folder) for folder in checkpoint_folders(parent)}
    best = max(scores, key=lambda folder: scores[folder], default=None)
    for folder in older:
        if folder != best or scores[folder] < 0:
            shutil.rmtree(folder, ignore_errors=True)


def quarantine(parent: Path, used: Path) -> None:
    """Rename the checkpoints newer than the one in use, which were found to be of no use.

    Else they would count among the newest, and good ones be removed in their place.
    """
    folders = checkpoint_folders(parent)
    for folder in folders[: folders.index(used)] if used in folders else ():
        unused = folder.with_name(folder.name + UNUSED)
        shutil.rmtree(unused, ignore_errors=True)
        with writing(unused):
            folder.rename(unused)


def remove_partial(parent: Path) -> None:
    """Remove what a run that was killed while it wrote has left."""
    for folder in parent.glob(f"*{PARTIAL}"):
        shutil.rmtree(folder, ignore_errors=True)


def partial_path(folder: Path) -> Path:
    """Where a folder is written before it has its name."""
    return folder.with_name(folder.name + PARTIAL)


@contextmanager
def atomic_directory(folder: Path) -> Generator[None]:
    """While this lasts, ``partial_path(folder)`` is filled; then it takes the folder's place.

    Raises:
      CheckpointError: if it cannot be written; the folder is then as it was.
    """
    partial = partial_path(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield
        for path in (*partial.iterdir(), partial):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {folder}: {error}; earlier checkpoints are as they were"
        ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Weights:
    """All weights that a learner has, put together from the ranks."""

    policy: Any
    critic: dict[str, Tensor] | None

    @classmethod
    def of(cls, learner: Learner) -> _Weights:
        """Every rank has to ask."""
        critic = None if learner.critic is None else learner.critic.model.weights()
        return cls(policy=learner.full_policy(), critic=critic)

    def save(self, folder: Path, tokenizer: Any) -> None:
        self.policy.save_pretrained(folder)
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # of no kind of its own: tokenizers has none for a full disk
            raise OSError(str(error)) from error
        if self.critic is not None:
            save_file(self.critic, folder / CRITIC_FILE)


def _load_policy(model: Any, folder: Path) -> None:
    """Read the policy's weights into the model that is there, and keep its precision."""
    if (folder / ADAPTER_CONFIG).is_file():
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        saved = load_file(folder / "adapter_model.safetensors")
        weights = {name.removeprefix("base_model.model."): saved[name] for name in saved}
        own: dict[str, Tensor] = get_peft_model_state_dict(model)
        if wrong := sorted(weights.keys() ^ own.keys()):
            raise SpanwiseError(f"its weights are others: {', '.join(wrong[:3])}")
        set_peft_model_state_dict(model, weights)
        return
    read, found = type(model).from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=model.dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    if wrong := sorted(str(name) for names in found.values() for name in names):
        raise SpanwiseError(f"its weights are others: {', '.join(wrong[:3])}")
    model.load_state_dict(read.state_dict())


def _optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by name of the weight; every rank has to ask."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, tensor in state.items():
            tensors[f"{names[parameter]}/{key}"] = whole(tensor.detach()).cpu().contiguous()
    return tensors


def _load_optimizer(file: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {names[parameter]: number for number, parameter in enumerate(parameters)}
    states: dict[int, dict[str, Tensor]] = {}
    for label, tensor in load_file(file).items():
        name, _, key = label.rpartition("/")
        number = numbers[name]
        if tensor.dim() and tensor.shape != parameters[number].shape:
            raise SpanwiseError(f"{label} has the shape {tuple(tensor.shape)}")
        part = shard_like(tensor, parameters[number]) if tensor.dim() else tensor
        states.setdefault(number, {})[key] = part
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _score(folder: Path) -> float:
    """The held-out score of a checkpoint; -1 if it has none."""
    try:
        score = json.loads((folder / STATE).read_text(encoding="utf-8"))["held_out"]
        return -1.0 if score is None else float(score)
    except (OSError, ValueError, KeyError, TypeError):
        return -1.0


def fingerprint(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
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
