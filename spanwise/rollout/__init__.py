"""Rollouts: a Sampler driven through an Environment gives a Tree."""

from spanwise.rollout.base import Rollout, Site
from spanwise.rollout.chains import Chains
from spanwise.rollout.failures import FailurePolicy, RunStopped
from spanwise.rollout.running import run_rollouts
from spanwise.rollout.tree_search import TreeSearch

__all__ = [
    "Chains",
    "FailurePolicy",
    "Rollout",
    "RunStopped",
    "Site",
    "TreeSearch",
    "run_rollouts",
]
