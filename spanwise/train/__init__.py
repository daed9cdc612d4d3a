"""The training loop and its settings."""

from spanwise.train.config import TrainConfig
from spanwise.train.loop import train

__all__ = ["TrainConfig", "train"]
