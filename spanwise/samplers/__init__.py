"""Sampling engines: token ids in, token ids and log-probs out.

``base`` is the interface, ``transformers`` samples from a model in process, ``scripted``
plays turns that a test wrote.
"""

from spanwise.samplers.base import (
    Completion,
    Engine,
    EngineError,
    Request,
    Sampler,
    Sampling,
)
from spanwise.samplers.scripted import ScriptedSampler

__all__ = [
    "Completion",
    "Engine",
    "EngineError",
    "Request",
    "Sampler",
    "Sampling",
    "ScriptedSampler",
]
