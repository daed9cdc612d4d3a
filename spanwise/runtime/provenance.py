"""Where a result comes from: the commit, the day and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """``commit``, ``date`` (UTC) and ``machine``, as plain JSON values."""
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"commit": commit(), "date": today, "machine": machine()}


def commit() -> str:
    """Short hash of the commit that the package is run from; ``unknown`` outside a checkout."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():  # installed, perhaps inside another checkout
        return "unknown"
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except OSError:
        return "unknown"
    return run.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """Processor, cores, threads, GPU and torch version, none of which names the host."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        cpu = names[0] if names else cpu
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
