"""The training loop and its settings."""

from spanwise.runtime.signals import Stopped
from spanwise.train.config import TrainConfig
from spanwise.train.loop import train

__all__ = ["Stopped", "TrainConfig", "train"]
