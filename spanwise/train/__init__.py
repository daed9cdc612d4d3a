"""The training loop and its settings."""

from spanwise.train.config import TrainConfig
from spanwise.train.loop import train
from spanwise.train.stopping import Stopped

__all__ = ["Stopped", "TrainConfig", "train"]
