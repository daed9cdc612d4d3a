"""A run that was killed or stopped ends as if it had not been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.left_behind import differing, left_behind
from spanwise.cli import main
from spanwise.display import Display
from spanwise.envs.base import Reply, Task, Turn
from spanwise.learn.critic import ValueHead
from spanwise.learn.learner import Learner
from spanwise.learn.nonfinite import NonfiniteError
from spanwise.models.execution import checkpoint_gradients
from spanwise.models.lora import LoRA, add_adapter
from spanwise.run.folder import RunError, RunFolder
from spanwise.tools.base import run_with_deadline
from spanwise.train import Stopped, TrainConfig, task_sampling, train
from spanwise.train.checkpoint import CheckpointError, checkpoint_folders
from spanwise.train.config import Checkpoints
from tests.tiny import tiny_model
from tests.train.letters import SYMBOLS, LetterModel, Letters
from tests.train.resumable import ROOT, child, plain, with_critic

RECIPES = {"plain": plain, "with_critic": with_critic}


def run(config: TrainConfig, folder: Path, *, resume: bool = False) -> RunFolder:
    return train(config, recipe="r", folder=folder, display=Display(), resume=resume)


@pytest.fixture(scope="module", params=sorted(RECIPES))
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[], TrainConfig], Path]:
    """A configuration and the folder of its uninterrupted run."""
    make = RECIPES[request.param]
    folder = tmp_path_factory.mktemp("whole") / request.param
    run(make(), folder)
    return make, folder


@dataclass(frozen=True, kw_only=True)
class ToolLetters(Letters):
    """Scores in a thread as tools do, each call after a moment that no seed knows."""

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        wait_s = int.from_bytes(os.urandom(1)) / 50_000
        await run_with_deadline(lambda: time.sleep(wait_s), 10.0)
        return await super().reply(task, turns)


@dataclass(frozen=True, kw_only=True)
class PreciseModel(LetterModel):
    """The small model in the precision, and with the adapter, that are asked for."""

    def load(self) -> Any:
        model = tiny_model(len(SYMBOLS), dtype=getattr(torch, self.dtype))
        if self.lora.rank:
            add_adapter(model, self.lora)
        if self.gradient_checkpointing:
            checkpoint_gradients(model)
        return model


class Killed(SystemExit):
    """Ends a run wherever it is, as a kill does; a task group passes this kind on as it is."""


@pytest.mark.parametrize("where", ["sampling", "update", "checkpoint", "measurement after"])
def test_a_run_that_ended_anywhere_goes_on_to_the_same_end(
    whole: tuple[Callable[[], TrainConfig], Path],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, folder = whole
    with monkeypatch.context() as patch:
        _end_in(where, patch)
        with pytest.raises(Killed):
            run(make(), tmp_path / "run")
    run(make(), tmp_path / "run", resume=True)
    assert differing(left_behind(folder), left_behind(tmp_path / "run")) == []


def _end_in(where: str, patch: pytest.MonkeyPatch) -> None:
    """Have the run killed in its fourth step, or at its end."""
    owner, name, calls = {
        "sampling": ("spanwise.rollout.journal.StepJournal", "write", 4 * 16 * 4 - 30),
        "update": ("spanwise.learn.optimizer_step", "_apply", 7),
        "checkpoint": ("spanwise.train.checkpoint", "_write", 3),  # the second's state
        "measurement after": ("spanwise.train.loop", "save_weights", 1),
    }[where]
    target = f"{owner}.{name}"
    module, _, attribute = target.rpartition(".")
    import importlib

    parent, _, last = module.rpartition(".")
    holder: Any
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError:
        holder = getattr(importlib.import_module(parent), last)
    real, count = getattr(holder, attribute), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == calls:
            raise Killed
        return real(*args, **kwargs)

    patch.setattr(holder, attribute, counted)


def test_finished_turns_are_not_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _end_in("update", patch)
        with pytest.raises(Killed):
            run(plain(), tmp_path / "run")
    from spanwise.samplers.embedded.engine import TransformersSampler

    real, asked = TransformersSampler.sample, [0]

    async def counted(self: Any, request: Any) -> Any:
        asked[0] += 1
        return await real(self, request)

    monkeypatch.setattr(TransformersSampler, "sample", counted)
    steps_left = 6 - 4  # the update of step 4 was killed; its trees are in the journal
    run(plain(), tmp_path / "run", resume=True)
    measured_after = 2 * 32
    assert asked[0] == steps_left * 16 * 4 + measured_after


def test_a_torn_last_line_of_the_journal_is_sampled_again(
    whole: tuple[Callable[[], TrainConfig], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, folder = whole
    with monkeypatch.context() as patch:
        _end_in("update", patch)
        with pytest.raises(Killed):
            run(make(), tmp_path / "run")
    newest = max((tmp_path / "run" / "journal").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    run(make(), tmp_path / "run", resume=True)
    assert differing(left_behind(folder), left_behind(tmp_path / "run")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["sampling", "update"])
def test_a_signal_stops_the_run_where_it_can_go_on(
    whole: tuple[Callable[[], TrainConfig], Path],
    where: str,
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, folder = whole
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        real = Learner.score if where == "update" else task_sampling.draw_tasks

        def signalled(*args: Any, **kwargs: Any) -> Any:
            os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        if where == "update":
            patch.setattr(Learner, "score", signalled)
        else:
            patch.setattr("spanwise.train.task_sampling.draw_tasks", signalled)
        with pytest.raises(Stopped) as stopped:
            run(make(), tmp_path / "run")
    assert stopped.value.number == number
    assert signal.getsignal(number) == before
    assert len(checkpoint_folders(tmp_path / "run" / "checkpoints")) >= 1
    run(make(), tmp_path / "run", resume=True)
    first, second = left_behind(folder), left_behind(tmp_path / "run")
    extra = {name for name in second if name not in first}  # the checkpoint of the stop
    assert [n for n in differing(first, second) if n not in extra] == []


def test_no_draw_reads_a_generator_that_others_use_too(tmp_path: Path) -> None:
    """So a checkpoint needs none."""
    found: list[dict[str, Any]] = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        run(plain(), tmp_path / str(seed))
        found.append(left_behind(tmp_path / str(seed)))
    assert differing(*found) == []


@pytest.mark.parametrize("changes", [{"max_rows": 16}, {"max_rows": 3, "max_prefix_tokens": 0}])
def test_the_same_run_however_many_requests_are_in_flight(
    changes: dict[str, int], tmp_path: Path
) -> None:
    many, few = plain(), replace(plain(), sampler=replace(plain().sampler, **changes))
    logs = [run(config, tmp_path / name) for config, name in ((many, "many"), (few, "few"))]
    first, second = (left_behind(log.folder) for log in logs)
    assert differing(first, second) == []


@pytest.mark.parametrize("num_threads", [1, 16])
def test_the_same_run_whichever_of_its_tools_ends_first(
    num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(plain(), steps=3)
    run(config, tmp_path / "plain")
    monkeypatch.setattr("spanwise.tools.base.MAX_RUNNING", num_threads)
    run(replace(config, env=ToolLetters()), tmp_path / "tools")
    assert differing(left_behind(tmp_path / "plain"), left_behind(tmp_path / "tools")) == []


@pytest.mark.parametrize(
    "model",
    [
        PreciseModel(dtype="bfloat16", gradient_checkpointing=True),
        PreciseModel(lora=LoRA(rank=2)),
        PreciseModel(dtype="bfloat16", lora=LoRA(rank=2)),
    ],
    ids=["bfloat16, gradient checkpointing", "adapter", "adapter on bfloat16"],
)
def test_models_of_other_precision_and_with_adapters_go_on_too(
    model: PreciseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        with_critic(), model=model, critic=ValueHead(learning_rate=1e-2, pretraining_steps=0)
    )
    config = replace(config, steps=3, checkpoints=Checkpoints(every=1))
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _end_in("update", patch)  # of the second step
        with pytest.raises(Killed):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    assert differing(left_behind(tmp_path / "whole"), left_behind(tmp_path / "run")) == []


def test_what_cannot_be_resumed_is_refused(
    whole: tuple[Callable[[], TrainConfig], Path], tmp_path: Path
) -> None:
    make, folder = whole
    with pytest.raises(RunError, match="is finished"):
        run(make(), folder, resume=True)
    with pytest.raises(RunError, match="--resume"):
        run(make(), folder)
    with pytest.raises(RunError, match="no run folder"):
        run(make(), tmp_path, resume=True)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "summary.json").unlink()
    with pytest.raises(RunError, match=r"seed was 0 and is 7"):
        run(replace(make(), seed=7), copy, resume=True)
    with pytest.raises(RunError, match=r"has \d+ bytes of the \d+"):
        (copy / "metrics.jsonl").write_text("")
        run(make(), copy, resume=True)
    (copy / "config.json").write_text('{"schema": 2, "recipe": 3}')
    with pytest.raises(RunError, match=r"config\.json does not say how the run was configured"):
        run(make(), copy, resume=True)
    assert main(["train", "--resume", str(copy)]) == 2


def test_gradients_that_stay_not_finite_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spanwise.learn.critic import FittedCritic

    real = FittedCritic.loss
    monkeypatch.setattr(FittedCritic, "loss", lambda self, *a, **k: real(self, *a, **k) * 1e39)
    with pytest.raises(RunError, match="not finite 3 times in a row in step 2") as error:
        run(
            replace(with_critic(), critic=replace(with_critic().critic, pretraining_steps=0)),
            tmp_path / "run",
        )
    assert isinstance(error.value.__cause__, NonfiniteError)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "run" / "not_finite" / "step_00002.safetensors")
    assert {"tokens", "advantages", "old_logprobs"} <= tensors.keys()


@pytest.mark.processes
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_killed_at_random_moments_and_resumed(recipe: str, tmp_path: Path) -> None:
    """SIGKILL of ``spanwise train`` from outside; the long form is bench/kill_resume.py."""
    spec = f"{ROOT}/tests/train/resumable.py:{recipe}"
    assert main(["train", spec, "--folder", str(tmp_path / "whole")]) == 0
    draw, folder = random.Random(recipe), tmp_path / "run"
    words = [spec, "--folder", str(folder)]
    for _ in range(2):
        process = child(*words)
        while process.poll() is None and not any(folder.glob("journal/*")):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.5))
        process.kill()
        process.communicate()
        if (folder / "summary.json").exists():
            break
        words = ["--resume", str(folder), "--allow", spec]
    else:
        assert main(["train", "--resume", str(folder), "--allow", spec]) == 0
    assert differing(left_behind(tmp_path / "whole"), left_behind(folder)) == []


def test_a_full_disk_names_the_file_and_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spanwise.train import state_files

    real, count = state_files.save_file, [0]

    def full(*args: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise OSError(28, "No space left on device")
        real(*args)

    config = replace(plain(), checkpoints=Checkpoints(every=2))
    with monkeypatch.context() as patch:
        patch.setattr(state_files, "save_file", full)
        with pytest.raises(CheckpointError, match=r"step_00004.*No space left"):
            run(config, tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_00002"]
    assert run(config, tmp_path / "run", resume=True).read_metrics()[-1]["step"] == 6
