"""Whether a run fits in memory, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from spanwise.models.loading import ModelError
from spanwise.train.config import TrainConfig
from spanwise.train.critic import ValueHead

BYTES_TRAINED = {"float32": 16, "bfloat16": 16}
"""Of each trained weight: itself, its gradient, two moments, and a master copy of a short one."""

BYTES_HELD = {"float32": 4, "bfloat16": 2}
"""Of each weight that stays as it is."""


def check_memory(config: TrainConfig) -> None:
    """Refuse a model whose weights and optimizer cannot fit, in one line that says why.

    Activations and the sampler's keys come on top: what passes here may still be too much.

    Raises:
      ModelError: if more is needed than is available, or the model cannot be used.
    """
    model = config.model
    size, device = model.num_parameters(), model.resolved_device()
    needed, available = run_bytes(config, size), available_bytes(device)
    if available is None or needed <= available:
        return
    raise ModelError(
        f"{model.path} has {size / 1e9:.2f} billion weights: training needs at least "
        f"{needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are available on {device}; take a "
        f"smaller model{_smaller(config, size, available)}"
    )


def run_bytes(config: TrainConfig, size: int) -> int:
    """What the weights of a run of ``size`` weights take with all that trains them, in bytes.

    Counted are the policy, a critic's own trunk and the reference of a KL penalty. With an
    adapter, all three share one set of frozen weights, and the adapters are too small to count.
    """
    held, trained = BYTES_HELD[config.model.dtype], BYTES_TRAINED[config.model.dtype]
    if config.model.lora.rank:
        return held * size
    own_critic = isinstance(config.critic, ValueHead) and config.critic.trunk == "own"
    return size * (trained * (1 + own_critic) + held * (config.kl.coefficient > 0))


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


def _smaller(config: TrainConfig, size: int, available: int) -> str:
    if config.model.lora.rank:
        return ""
    dtype = next((d for d in ("float32", "bfloat16") if BYTES_HELD[d] * size < available), None)
    if dtype is None:
        return ""
    held = BYTES_HELD[dtype] * size / 1e9
    also = "" if dtype == config.model.dtype else f" --model.dtype {dtype}"
    return f", or train an adapter: --model.lora.rank 32{also} ({held:.1f} GB)"
