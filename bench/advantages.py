"""The span recurrence beside verl's GAE, a plain torch loop, ``torch.cumsum`` and a copy.

``python -m bench.advantages [--threads 2] [--no-peer]`` writes ``bench/results/advantages.json``.
verl is measured where it is installed: ``pip install verl==0.9.1 orjson``. Equality is
checked before anything is timed.

``--gpu`` measures the Triton kernel instead, beside a copy on the device that moves the same
bytes and the plain torch scan, and writes ``bench/results/advantages_gpu.json``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.record import save
from bench.timing import alternated_s, arguments, speed_row
from spanwise import spans
from spanwise.advantages import span_advantages, span_returns, whiten
from spanwise.advantages.recurrence import _scanned_recurrence

ROWS, PLACES, LAM = 64, 8192, 0.95
GPU_ROWS, GPU_PLACES = 512, 32768
LENGTHS = (1024, 4096, 16384, 65536, 131072)
"""Places of one row, for the growth of the cost; 16 rows each."""


def verl_gae() -> Callable[..., Any] | None:
    """The function of verl, or None where verl is not installed."""
    try:
        from verl.trainer.ppo.core_algos import (  # pyright: ignore[reportMissingImports]
            compute_gae_advantage_return,
        )
    except ImportError as error:
        print(f"verl is not installed ({error}): pip install verl==0.9.1 orjson; left out")
        return None
    return compute_gae_advantage_return


def loop_gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> Tensor:
    """The plain loop over places in torch, all rows at once; the mask is read."""
    advantages = torch.zeros_like(values)
    advantage, next_value = torch.zeros(len(values)), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + next_value - values[:, t]
        advantage = torch.where(here, delta + lam * advantage, advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = advantage
    return torch.where(mask, advantages, 0)


def batch(num_rows: int, num_places: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards at the end, values, log-probs of which a fifth are unlikely, a full mask."""
    generator = torch.Generator().manual_seed(0)
    values, probabilities = torch.rand(2, num_rows, num_places, generator=generator)
    rewards = torch.zeros(num_rows, num_places)
    rewards[:, -1] = torch.arange(num_rows) % 2
    return rewards, values, probabilities.log(), torch.ones(num_rows, num_places, dtype=torch.bool)


def main() -> None:
    options = arguments(__doc__, gpu=True)
    if options.gpu:
        save("advantages_gpu", on_gpu(options.rounds))
        return
    rewards, values, logprobs, mask = batch(ROWS, PLACES)
    tokens, segments = spans.by_token(mask), spans.by_probability(logprobs, mask)
    verl = None if options.no_peer else verl_gae()

    def gae() -> Tensor:
        return span_advantages(rewards, values, tokens, lam=LAM)

    def sae() -> Tensor:
        return span_advantages(rewards, values, segments, lam=LAM)

    def sae_and_spans() -> Tensor:
        found = spans.by_probability(logprobs, mask)
        return span_advantages(rewards, values, found, lam=LAM)

    def gae_as_verl() -> tuple[Tensor, Tensor]:
        found = spans.by_token(mask)
        returns = span_returns(rewards, values, found, lam=LAM)
        return whiten(span_advantages(rewards, values, found, lam=LAM), mask), returns

    def verl_full() -> tuple[Tensor, Tensor]:
        assert verl is not None
        return verl(rewards, values, mask.float(), 1.0, LAM)

    torch.testing.assert_close(gae(), loop_gae(rewards, values, mask, LAM), rtol=0, atol=1e-4)
    fast = {
        "gae": gae,
        "sae": sae,
        "sae_and_spans": sae_and_spans,
        "cumsum": lambda: values.cumsum(1),
        "copy": lambda: values.clone(),
    }
    times = alternated_s(fast, rounds=5 * options.rounds, calls=5)
    size = f"{ROWS} x {PLACES}"
    rows = [
        speed_row(f"{case} {size}", f"limit: {limit}", times[name], times[limit])
        for case, name in (
            ("GAE", "gae"),
            ("SAE", "sae"),
            ("SAE with its spans", "sae_and_spans"),
        )
        for limit in ("cumsum", "copy")
    ]
    peers: dict[str, Callable[[], object]] = {
        "gae": gae,
        "sae": sae,
        "sae_and_spans": sae_and_spans,
        "as_verl": gae_as_verl,
        "torch loop": lambda: loop_gae(rewards, values, mask, LAM),
    }
    if verl is not None:
        for ours, theirs in zip(gae_as_verl(), verl_full(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
        peers["verl 0.9.1 GAE"] = verl_full
    times = alternated_s(peers, rounds=options.rounds)
    rows += [
        speed_row(f"{case} {size}", peer, times[name], times[peer], note)
        for case, name, note in (
            ("GAE", "gae", "verl's time includes whitening and returns"),
            ("SAE", "sae", "the peer computes GAE: it has no segments"),
            ("SAE with its spans", "sae_and_spans", "the peer computes GAE"),
            ("GAE, whitened, with spans and returns", "as_verl", "the same work as verl's"),
        )
        for peer in peers
        if peer in ("torch loop", "verl 0.9.1 GAE")
    ]
    rows += growth(options.rounds)
    save("advantages", rows)


def growth(rounds: int) -> list[dict[str, Any]]:
    """The cost of a place as rows grow, against that of the shortest rows."""
    functions: dict[int, Callable[[], object]] = {}
    for length in LENGTHS:
        rewards, values, logprobs, mask = batch(16, length)
        segments = spans.by_probability(logprobs, mask)
        functions[length] = lambda r=rewards, v=values, s=segments: span_advantages(r, v, s)
    named = {str(length): function for length, function in functions.items()}
    times = alternated_s(named, rounds=3 * rounds, calls=5)
    per_place = {n: [s / n for s in times[str(n)]] for n in LENGTHS}
    return [
        speed_row(
            f"SAE 16 x {n}, seconds a place",
            f"ours at {LENGTHS[0]} places",
            per_place[n],
            per_place[LENGTHS[0]],
            "1 is linear; above 1 where short rows pay for the call itself",
        )
        for n in LENGTHS[1:]
    ]


def on_gpu(rounds: int) -> list[dict[str, Any]]:
    """The kernel against the CPU's result, then its time beside a copy of the same bytes."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu needs a CUDA device; this machine has none")
    if importlib.util.find_spec("triton") is None:
        raise SystemExit("--gpu needs triton: pip install triton")
    rewards, values, logprobs, mask = batch(GPU_ROWS, GPU_PLACES)
    segments = spans.by_probability(logprobs, mask)
    on_cpu = (rewards, values, segments)
    there = tuple(x.cuda() for x in on_cpu)
    result = span_advantages(*there, lam=LAM)
    torch.testing.assert_close(
        result.cpu(), span_advantages(*on_cpu, lam=LAM), rtol=1e-4, atol=1e-4
    )
    # Rewards, values and spans are read and the result is written; a copy moves each byte twice.
    num_bytes = sum(x.nbytes for x in (*there, result)) // 2
    source = torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    lam_N = torch.full((GPU_ROWS,), LAM, dtype=torch.float64, device="cuda")
    bootstrap = torch.zeros(GPU_ROWS, device="cuda")

    def timed(function: Callable[..., Tensor]) -> Callable[[], None]:
        def waited_for() -> None:
            function()
            torch.cuda.synchronize()

        return waited_for

    times = alternated_s(
        {
            "whole": timed(lambda: span_advantages(*there, lam=LAM)),
            "scan": timed(
                lambda: _scanned_recurrence(*there, gamma=1.0, lam=lam_N, bootstrap=bootstrap)
            ),
            "copy": timed(lambda: target.copy_(source)),
        },
        rounds=rounds,
        calls=5,
    )
    size = f"SAE {GPU_ROWS} x {GPU_PLACES}, {torch.cuda.get_device_name()}"
    note = "with the checks of its arguments"
    return [
        speed_row(
            size, "limit: device copy of the same bytes", times["whole"], times["copy"], note
        ),
        speed_row(size, "plain torch scan", times["whole"], times["scan"], note),
    ]


if __name__ == "__main__":
    main()
