"""The modules of the package, in the order of architecture."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "spanwise"
LAYERS = [
    "errors",
    "lookup",
    "kernels",
    "spans",
    "advantages",
    "losses",
    "tree",
    "batch",
    "partitions",
    "credit",
    "runtime",
    "run",
    "models",
    "tools",
    "envs",
    "samplers",
    "rollout",
    "testing",
    "learn",
    "display",
    "viewer",
    "train",
    "recipes",
    "toys",
    "study",
    "cli",
    "__main__",
]
