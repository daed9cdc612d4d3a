"""The turn-ratio loss beside the token-ratio loss, a loop over rows and turns, and verl.

``python -m bench.losses [--threads 2] [--no-peer]`` writes ``bench/results/losses.json``. Every
figure is one forward and backward pass over 64 x 8,192 tokens with 8 turns a row. verl is
measured where it is installed: ``pip install verl==0.9.1 orjson``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.record import save
from bench.timing import alternated_s, arguments, speed_row
from spanwise import spans
from spanwise.losses import clipped_surrogate, mean_by_sample, mean_by_token

ROWS, PLACES, TURNS = 64, 8192, 8
CLIP_LOW, CLIP_HIGH = 3e-3, 4e-3


def gradient(loss: Callable[[Tensor], Tensor], logprobs: Tensor) -> Tensor:
    """One forward and backward pass."""
    x = logprobs.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def clipped(ratios: Tensor, advantages: Tensor) -> Tensor:
    limited = ratios.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    return torch.maximum(-ratios * advantages, -limited * advantages)


def loop_loss(x: Tensor, old: Tensor, advantages: Tensor, turns: Tensor) -> Tensor:
    """AT²PO's objective as a loop over the rows and their turns; the runs are found before."""
    per_row = []
    for i, row in enumerate(turn_slices(turns)):
        losses = []
        for turn in row:
            log_ratios = x[i, turn] - old[i, turn]
            mean = log_ratios.mean().detach()
            ratios = (mean + log_ratios - log_ratios.detach()).clamp(max=10).exp()
            losses.append(clipped(ratios, advantages[i, turn]).sum())
        per_row.append(torch.stack(losses).sum() / sum(t.stop - t.start for t in row))
    return torch.stack(per_row).mean()


def turn_slices(turns: Tensor) -> list[list[slice]]:
    """Where each turn of each row begins and ends; turns are runs without a gap."""
    found = []
    for row in turns:
        edges = torch.nonzero(row[1:] != row[:-1]).flatten() + 1
        bounds = [0, *edges.tolist(), len(row)]
        pieces = [slice(a, b) for a, b in pairwise(bounds)]
        found.append([piece for piece in pieces if row[piece.start] >= 0])
    return found


def plain_token_loss(x: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """PPO's objective over tokens in as few operations as torch allows, without metrics."""
    losses = clipped((x - old).exp(), advantages)
    return (losses * mask).sum() / mask.sum()


def verl_losses() -> dict[str, Any] | None:
    """The two losses of verl that are nearest, or None where verl is not installed."""
    try:
        from verl.trainer.ppo.core_algos import (  # pyright: ignore[reportMissingImports]
            compute_policy_loss_gspo,
            compute_policy_loss_vanilla,
        )
        from verl.workers.config import ActorConfig  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"verl is not installed ({error}): pip install verl==0.9.1 orjson; left out")
        return None
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=CLIP_LOW,
        clip_ratio_low=CLIP_LOW,
        clip_ratio_high=CLIP_HIGH,
    )
    return {
        "verl 0.9.1 PPO (token ratio)": (compute_policy_loss_vanilla, config),
        "verl 0.9.1 GSPO (row ratio)": (compute_policy_loss_gspo, config),
    }


def main() -> None:
    options = arguments(__doc__)
    generator = torch.Generator().manual_seed(0)
    width = PLACES // TURNS
    mask = (torch.arange(PLACES) % width < width * 7 // 8).expand(ROWS, PLACES).contiguous()
    old = torch.randn(ROWS, PLACES, generator=generator) - 2
    logprobs = old + 0.01 * torch.randn(ROWS, PLACES, generator=generator)
    advantages = torch.randn(ROWS, PLACES, generator=generator)
    turns, tokens, whole = spans.by_turn(mask), spans.by_token(mask), spans.whole(mask)

    def ours(ratio_spans: Tensor, mean: Any) -> Callable[[], Tensor]:
        def loss(x: Tensor) -> Tensor:
            losses, _ = clipped_surrogate(
                x, old, advantages, ratio_spans, clip_low=CLIP_LOW, clip_high=CLIP_HIGH
            )
            return mean(losses, mask)

        return lambda: gradient(loss, logprobs)

    functions: dict[str, Callable[[], Tensor]] = {
        "turn": ours(turns, mean_by_sample),
        "token": ours(tokens, mean_by_token),
        "whole": ours(whole, mean_by_sample),
        "loop over rows and turns": lambda: gradient(
            lambda x: loop_loss(x, old, advantages, turns), logprobs
        ),
        "plain token loss, no metrics": lambda: gradient(
            lambda x: plain_token_loss(x, old, advantages, mask), logprobs
        ),
    }
    torch.testing.assert_close(functions["turn"](), functions["loop over rows and turns"]())
    torch.testing.assert_close(functions["token"](), functions["plain token loss, no metrics"]())
    mask_f = mask.float()
    for name, (function, config) in ((not options.no_peer and verl_losses()) or {}).items():
        functions[name] = lambda f=function, c=config: gradient(
            lambda x: f(old, x, advantages, mask_f, "token-mean", c)[0], logprobs
        )
    times = alternated_s(functions, rounds=options.rounds)
    size = f"{ROWS} x {PLACES}, {TURNS} turns a row"
    rows = [
        speed_row(f"turn-ratio loss {size}", f"ours: {peer}-ratio loss", times["turn"], times[peer])
        for peer in ("token", "whole")
    ]
    rows += [
        speed_row(f"{ratio}-ratio loss {size}", peer, times[ratio], times[peer])
        for ratio in ("turn", "token")
        for peer in list(functions)[3:]
    ]
    save("losses", rows)


if __name__ == "__main__":
    main()
