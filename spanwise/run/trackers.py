"""The same metrics elsewhere: TensorBoard, Weights & Biases, trackio, or a tracker of your own.

The run folder is the record; a tracker gets a copy of each line as it is written. Its
package is loaded only when it is asked for.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from spanwise.errors import SpanwiseError
from spanwise.run.settings import flat_settings


class TrackerError(SpanwiseError):
    """A tracker cannot be used; the message says why and what to do."""


class Tracker(ABC):
    """A place that metrics are copied to. Made when a run starts, closed when it ends.

    Args:
      folder: The run folder.
      config: The resolved settings, as ``config.json`` has them.
    """

    package: ClassVar[str] = ""
    """The package that it needs, and the extra of spanwise that brings it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def check(cls) -> None:
        """Refuse a tracker that cannot be used, before a model is loaded.

        Raises:
          TrackerError: if its package is missing.
        """
        if cls.package:
            _loaded(cls.package)

    @abstractmethod
    def write(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics; what is no finite number is left out."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is held back."""


class TensorBoard(Tracker):
    """Event files under ``tensorboard/`` in the run folder."""

    package = "tensorboard"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
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
    """A run at Weights & Biases, in the project ``spanwise``; its environment variables hold."""

    package = "wandb"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _loaded("wandb")
        self._run = wandb.init(
            project="spanwise", name=folder.name, config=dict(config), dir=str(folder)
        )

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._run.log(figures(metrics), step=step_of(metrics))

    def close(self) -> None:
        self._run.finish()


class Trackio(WandB):
    """A run in trackio's local database, in the project ``spanwise``."""

    package = "trackio"

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        trackio = _loaded("trackio")  # its runs have the methods of those of wandb
        self._run = trackio.init(project="spanwise", name=folder.name, config=dict(config))


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio
}  # fmt: skip
"""Those that ship with spanwise, by the name of their package."""


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line, without the step.

    Example:
      >>> figures({"step": 3, "score": 0.5, "loss": None, "note": "x"})
      {'score': 0.5}
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


def _loaded(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TrackerError(
            f"tracking with {package} needs its package: pip install 'spanwise[{package}]'"
        ) from error
