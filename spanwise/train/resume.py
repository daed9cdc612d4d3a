"""Resuming a run: when its checkpoints are written, and how they are restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from spanwise.display import Display
from spanwise.run.folder import RunError, RunFolder, refuse_links_out
from spanwise.run.settings import differing, flat_settings
from spanwise.runtime.waits import waiting
from spanwise.train.checkpoint import (
    newest_usable,
    quarantine,
    remove_old,
    remove_partial,
    write_checkpoint,
)
from spanwise.train.state import Run


def save_state(run: Run) -> None:
    """Write a checkpoint of the run as it is now, and remove those that are no longer kept.

    Every rank has to call it.

    Raises:
      CheckpointError: if it cannot be written.
    """
    folder = state_path(run)
    with waiting(f"the checkpoint, step {run.state.step}"):
        write_checkpoint(folder, run.learner, run.tokenizer, run.state, run.settings)
    if run.ranks.is_main:
        remove_old(folder.parent, run.config.checkpoints.keep)


def is_saved(run: Run) -> bool:
    """Whether a checkpoint of the run as it is now exists; every rank has to ask."""
    return run.ranks.gather(state_path(run).exists())[0]


def state_path(run: Run) -> Path:
    """Folder for a checkpoint of the run as it is now."""
    state = run.state
    fitting = state.step == 0 and not state.critic_fitted
    name = f"critic_{len(state.critic_history):05d}" if fitting else f"step_{state.step:05d}"
    return run.log.checkpoint_path(name)


def restore(run: Run, display: Display) -> None:
    """Restore a new run with the same settings to the newest usable checkpoint of its folder.

    Without one, the run starts from the beginning, with the turns in the journal. Every rank
    has to call it.

    Raises:
      CheckpointError: if there are checkpoints and none can be used.
      RunError: if the metrics are shorter than when the checkpoint was written.
    """

    def tell(text: str) -> None:
        display.console.print(text)

    parent = run.log.checkpoint_path("final").parent
    if run.ranks.is_main:
        remove_partial(parent)
    state = newest_usable(parent, run.learner, run.settings, tell)
    if state is None:
        tell("no checkpoint yet; going on from the turns that were finished")
    else:
        vars(run.state).update(vars(state))
        tell(f"going on after step {state.step}")
        run.update_sampler()
    if run.ranks.is_main:
        quarantine(parent, state_path(run))
        run.log.restore(run.state.step, run.state.metrics_bytes)


def open_for_resume(folder: Path, settings: dict[str, Any]) -> RunFolder:
    """The folder of a run that can be resumed.

    Raises:
      RunError: if there is no run, it is finished, its settings have changed, or a link in it
        leads out of it.
    """
    log = RunFolder.open(folder)
    refuse_links_out(folder)
    if log.summary_path.exists():
        raise RunError(f"{folder} is finished; there is nothing to resume")
    recorded = log.read_config().get("config")
    if not isinstance(recorded, dict):
        raise RunError(f"{log.config_path} does not say how the run was configured")
    before, now = flat_settings(cast("dict[str, Any]", recorded)), flat_settings(settings)
    if changed := [name for name in differing(before, now) if name != "folder"]:
        changes = "; ".join(f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in changed)
        raise RunError(
            f"{folder} was started with other settings: {changes}. Put the recipe "
            "back as it was, or train in another --folder"
        )
    return log
