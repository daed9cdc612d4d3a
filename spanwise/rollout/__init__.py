"""Rollouts: a Sampler driven through an Environment gives a Tree."""

from spanwise.rollout.base import Rollout
from spanwise.rollout.chains import Chains
from spanwise.rollout.context import RolloutContext
from spanwise.rollout.failures import FailurePolicy, RunStopped
from spanwise.rollout.tree_search import TreeSearch
from spanwise.runtime.event_loop import run_async

__all__ = [
    "Chains",
    "FailurePolicy",
    "Rollout",
    "RolloutContext",
    "RunStopped",
    "TreeSearch",
    "run_async",
]
