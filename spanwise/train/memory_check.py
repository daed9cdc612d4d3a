"""Whether a run fits in memory, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from spanwise.models.loading import ModelError
from spanwise.models.lora import LoRA
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.train.config import TrainConfig

BYTES_TRAINED = {"float32": 16, "bfloat16": 16}
"""Of each trained weight: itself, its gradient, two moments, and a master copy of a short one."""

BYTES_HELD = {"float32": 4, "bfloat16": 2}
"""Of each weight that stays as it is."""


def check_memory(config: TrainConfig, ranks: Ranks = ALONE) -> None:
    """Refuse models whose weights and optimizers cannot fit, in one line that says why.

    Activations and the sampler's keys come on top: what passes here may still be too much.

    Args:
      config: Of the run.
      ranks: Its processes; those on one machine share its memory, each has a GPU of its own.

    Raises:
      ModelError: if more is needed than is available, or a model cannot be used.
    """
    model, own = config.model, config.critic.own_model(config.model)
    size, device = model.num_parameters(), model.resolved_device()
    other_size = own.num_parameters() if own not in (None, model) else 0
    together = 1 if device.type == "cuda" else ranks.on_this_machine
    needed = together * run_bytes(config, size, ranks, other_size=other_size)
    available = available_bytes(device)
    if available is None or needed <= available:
        return
    also = f" and the critic's model {other_size / 1e9:.2f} billion" if other_size else ""
    share = f" in {together} processes" if together > 1 else ""
    raise ModelError(
        f"{model.path} has {size / 1e9:.2f} billion weights{also}: training needs at least "
        f"{needed / 1e9:.1f} GB{share} and {available / 1e9:.1f} GB are available on {device}; "
        f"take a smaller model{_smaller(config, size, other_size, available // together)}"
    )


def run_bytes(config: TrainConfig, size: int, ranks: Ranks = ALONE, *, other_size: int = 0) -> int:
    """What the weights of a run take in one process with all that trains them, in bytes.

    Counted are the policy, a critic's own trunk, the reference of a KL penalty and, with
    ``max_off_policy_steps``, the copy of the policy that is sampled from meanwhile. With an
    adapter, copies share one set of frozen weights, and the adapters are too small to count.
    Models that are split over processes take their share of that, and one whole copy of the
    policy, to sample from; and before they are split, two whole ones.

    Args:
      config: Of the run.
      size: Weights of the policy.
      ranks: The processes.
      other_size: Weights of another model that the critic starts from; 0: there is none.
    """
    held, trained = BYTES_HELD[config.model.dtype], BYTES_TRAINED[config.model.dtype]
    trunk = 0 if config.critic.own_model(config.model) is None else other_size or size
    reference = size * (config.kl.coefficient > 0)
    split = ranks.mesh is not None
    if config.model.lora.rank:
        # split models do not share frozen weights, each has its part of its own
        total = held * (size + (trunk + reference if split else other_size))
    else:
        total = trained * (size + trunk) + held * (reference + size * config.max_off_policy_steps)
    if not split:
        return total
    return max(held * size + math.ceil(total / ranks.size), held * (size + max(size, trunk)))


def available_bytes(device: torch.device) -> int | None:
    """Free memory of the device, with the limit of a container; None where none can tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [_meminfo_bytes(), _container_bytes()]
    return min((limit for limit in limits if limit is not None), default=None)


def _meminfo_bytes() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _container_bytes() -> int | None:
    folder = Path("/sys/fs/cgroup")
    limit, used = (_lines(folder / f"memory.{name}") for name in ("max", "current"))
    if not limit or not used or limit[0] == "max":
        return None
    # file pages that the kernel would give up count as used
    cached = sum(
        int(line.split()[1])
        for line in _lines(folder / "memory.stat")
        if line.startswith(("inactive_file ", "active_file "))
    )
    return int(limit[0]) - int(used[0]) + cached


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _smaller(config: TrainConfig, size: int, other_size: int, available: int) -> str:
    if config.model.lora.rank:
        return ""
    for dtype in ("float32", "bfloat16"):
        adapted = replace(config.model, dtype=dtype, lora=LoRA(rank=32))
        needed = run_bytes(replace(config, model=adapted), size, other_size=other_size)
        if needed < available:
            also = "" if dtype == config.model.dtype else f" --model.dtype {dtype}"
            return f", or train an adapter: --model.lora.rank 32{also} ({needed / 1e9:.1f} GB)"
    return ""
