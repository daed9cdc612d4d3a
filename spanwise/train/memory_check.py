"""Refuses a run that cannot fit in memory, before anything is loaded."""

from __future__ import annotations

import psutil
import torch

from spanwise.models.loading import ModelError
from spanwise.runtime.distributed import ALONE, Ranks
from spanwise.train.config import TrainConfig

TRAINED_BYTES = 16
"""Bytes of a trained weight, its gradient and two moments in float32; in bfloat16 the first two
are half as long, and the optimizer has a float32 copy of the weight."""

HELD_BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a weight that is not trained."""


def check_memory(config: TrainConfig, ranks: Ranks = ALONE) -> None:
    """Refuse models whose weights and optimizer states cannot fit.

    Activations and the sampler's keys and values come on top: what passes may still be too
    much. Processes on one machine share its memory; each has a GPU of its own.

    Raises:
      ModelError: if more is needed than is available, or a model cannot be used.
    """
    device = config.model.resolved_device()
    on_gpu = device.type == "cuda"
    needed = run_bytes(config, ranks) * (1 if on_gpu else ranks.on_this_machine)
    available = available_bytes(device)
    if needed <= available:
        return
    adapter = ", or train an adapter: --model.lora.rank 32 --model.dtype bfloat16"
    raise ModelError(
        f"{config.model.path} is too large: training needs at least {needed / 1e9:.1f} GB and "
        f"{available / 1e9:.1f} GB are available on {device}; take a smaller model"
        f"{'' if config.model.lora.rank else adapter}"
    )


def run_bytes(config: TrainConfig, ranks: Ranks = ALONE) -> int:
    """Bytes that the weights of a run and all that trains them take in one process.

    Counted are the policy, a critic's own trunk, the reference of a KL penalty and, with
    ``max_off_policy_steps``, the copy of the policy that is sampled from. With an adapter,
    copies share the frozen weights, and the adapters are too small to count. A process has
    its share of split models, and a whole policy to sample from. An engine with weights of its
    own needs neither of the two copies here.
    """
    model, own = config.model, config.critic.own_model(config.model)
    policy, held = model.num_parameters(), HELD_BYTES[model.dtype]
    trunk = 0 if own is None else policy if own == model else own.num_parameters()
    sampled = held * policy * config.sampler.reads_policy
    if model.lora.rank:
        total = held * (policy + (trunk if own != model else 0))
    else:
        total = TRAINED_BYTES * (policy + trunk) + held * policy * (config.kl.coefficient > 0)
        total += sampled * config.max_off_policy_steps
    return total if ranks.mesh is None else total // ranks.size + sampled


def available_bytes(device: torch.device) -> int:
    """Free memory of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
