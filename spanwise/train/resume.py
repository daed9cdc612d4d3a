"""Going on with a run: what is written for it, and how it is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from spanwise.display import Display
from spanwise.run.folder import RunError, RunFolder
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
    """Write a checkpoint of where the run is, and remove those that are no longer kept.

    Every rank has to call it, the leading one writes.

    Raises:
      CheckpointError: if it cannot be written.
    """
    folder = state_path(run)
    with waiting(f"the checkpoint, step {run.state.step}"):
        write_checkpoint(folder, run.learner, run.tokenizer, run.state, run.settings)
    if run.ranks.is_main:
        remove_old(folder.parent, run.config.checkpoints.keep)


def is_saved(run: Run) -> bool:
    """Whether there is a checkpoint of where the run is."""
    return state_path(run).exists()


def state_path(run: Run) -> Path:
    """Where a checkpoint of where the run is belongs."""
    state = run.state
    fitting = state.step == 0 and not state.critic_fitted
    name = f"critic_{len(state.critic_history):05d}" if fitting else f"step_{state.step:05d}"
    return run.log.checkpoint_path(name)


def restore(run: Run, display: Display) -> None:
    """Bring a new run of the same settings to the newest checkpoint of its folder.

    Without one it begins anew, but for the turns in the journal. Every rank reads the
    checkpoint, however many wrote it.

    Raises:
      CheckpointError: if there are checkpoints and none can be used.
      RunError: if the metrics are shorter than when the checkpoint was written.
    """

    def tell(text: str) -> None:
        display.console.print(text, highlight=False)

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
    """The log of a run that can be gone on with.

    Raises:
      RunError: if there is none, it is finished, or its settings are others now.
    """
    log = RunFolder.open(folder)
    if log.summary_path.exists():
        raise RunError(f"{folder} is finished; there is nothing to resume")
    recorded = log.read_config().get("config")
    if not isinstance(recorded, dict):
        raise RunError(f"{log.config_path} does not say how the run was configured")
    before, now = flat_settings(cast("dict[str, Any]", recorded)), flat_settings(settings)
    if changed := [name for name in differing(before, now) if name != "folder"]:
        told = "; ".join(f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in changed)
        raise RunError(
            f"{folder} was started with other settings: {told}. Put the recipe "
            "back as it was, or train in another --folder"
        )
    return log
