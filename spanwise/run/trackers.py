"""The same metrics elsewhere: TensorBoard, Weights & Biases, trackio.

The run folder is the record; a tracker gets a copy of each line as it is written. Its
package is loaded only when it is asked for.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from spanwise.errors import SpanwiseError

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class TrackerError(SpanwiseError):
    """A tracker cannot be used; the message says why and what to do."""


class Tracker(ABC):
    """Where metrics are copied to. Made when a run starts, closed when it ends."""

    @abstractmethod
    def write(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics; what is no finite number is left out."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is held back."""


class TensorBoard(Tracker):
    """Event files under ``tensorboard/`` in the run folder.

    Raises:
      TrackerError: if the package is missing.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        _loaded("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        lines = (f"    {name} = {value}" for name, value in flat_settings(config).items())
        self._writer.add_text("config", "\n".join(lines))

    def write(self, metrics: Mapping[str, Any]) -> None:
        for name, value in figures(metrics).items():
            self._writer.add_scalar(name, value, step_of(metrics))

    def close(self) -> None:
        self._writer.close()


class WandB(Tracker):
    """A run at Weights & Biases, in the project ``spanwise``; its environment variables hold.

    Raises:
      TrackerError: if the package is missing.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _loaded("wandb", "wandb")
        self._run = wandb.init(
            project="spanwise", name=folder.name, config=dict(config), dir=str(folder)
        )

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._run.log(figures(metrics), step=step_of(metrics))

    def close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """A run in trackio's local database, in the project ``spanwise``.

    Raises:
      TrackerError: if the package is missing.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        trackio = _loaded("trackio", "trackio")
        self._run = trackio.init(project="spanwise", name=folder.name, config=dict(config))

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._run.log(figures(metrics), step=step_of(metrics))

    def close(self) -> None:
        self._run.finish()


TRACKERS: Mapping[TrackerName, type[TensorBoard] | type[WandB] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
      TrackerError: naming the extra that brings it.
    """
    for name in names:
        _loaded(name, name)


def open_trackers(
    names: Sequence[TrackerName], folder: Path, config: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers of a run.

    Args:
      names: Which, each once.
      folder: The run folder.
      config: The resolved settings.

    Raises:
      TrackerError: if one's package is missing; it names the extra that brings it.
    """
    return [TRACKERS[name](folder, config) for name in dict.fromkeys(names)]


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line, without the step.

    Example:
      >>> figures({"step": 3, "reward": 0.5, "loss": None, "note": "x"})
      {'reward': 0.5}
    """
    return {
        name: value
        for name, value in metrics.items()
        if name not in ("step", "critic_batch")
        and isinstance(value, int | float)
        and math.isfinite(value)
    }


def step_of(metrics: Mapping[str, Any]) -> int:
    """The step of a line; batches that fit a critic beforehand all belong to step 0."""
    return int(metrics.get("step", 0))


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings under dotted names.

    Example:
      >>> flat_settings({"seed": 0, "update": {"epochs": 1}})
      {'seed': 0, 'update.epochs': 1}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _loaded(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrackerError(
            f"tracking with {module} needs its package: pip install 'spanwise[{extra}]'"
        ) from error
