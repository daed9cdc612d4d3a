"""Sampling engines: token ids in, token ids and log-probs out.

``base`` is the interface, ``embedded`` samples from a transformers model in process, ``vllm``
with vLLM, ``scripted`` plays turns that a test wrote.
"""

from spanwise.samplers.base import Completion, Engine, EngineError, Request, Sampler, Sampling
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
