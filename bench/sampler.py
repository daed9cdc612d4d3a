"""The embedded engine against ``model.generate``: the same prompts, the same greedy tokens.

Run ``python -m bench.sampler``; writes ``bench/results/sampler.json``. Cases:

- ``uniform``: every row samples 40 tokens; generate wastes nothing but padding of prompts.
- ``ragged``: rows end after 5 to 75 tokens, as turns do; generate waits for the longest.
- ``siblings``: eight rows a prompt, as reinforcement learning asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench.record import save
from spanwise.samplers.base import Completion, Request, Sampling
from spanwise.samplers.embedded.engine import TransformersEngine

VOCAB = 700
ALTERNATIONS = 5


class NoText:
    """The benchmark has no stop strings, so nothing is decoded."""

    eos_token_id = None


def benchmark_model() -> Any:
    """The size of the embedded base model: hidden 128, 4 layers."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.1,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()


def case_requests(case: str, rows: int) -> list[Request]:
    rng = random.Random(0)
    siblings = 8 if case == "siblings" else 1
    prompts = [
        tuple(rng.randrange(1, VOCAB) for _ in range(rng.randrange(20, 60)))
        for _ in range(rows // siblings)
    ]
    return [
        Request(
            prompt=prompts[i // siblings],
            seed=i,
            max_tokens=rng.randrange(5, 76) if case == "ragged" else 40,
            sampling=Sampling(temperature=0.0),
        )
        for i in range(rows)
    ]


def ours(model: Any, requests: list[Request]) -> list[tuple[int, ...]]:
    """Builds the sampler anew, so that no run profits from the cache of the one before."""
    sampler = TransformersEngine().build(model, NoText())

    async def all_of_them() -> list[Completion]:
        return await asyncio.gather(*(sampler.sample(r) for r in requests))

    return [c.tokens for c in asyncio.run(all_of_them())]


def generate(model: Any, requests: list[Request]) -> list[tuple[int, ...]]:
    """One left-padded batch, up to the longest row's limit."""
    width = max(len(r.prompt) for r in requests)
    ids = torch.tensor([[0] * (width - len(r.prompt)) + list(r.prompt) for r in requests])
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in requests])
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max(r.max_tokens for r in requests),
        do_sample=False,
    )
    rows = out[:, width:].tolist()
    return [tuple(row[: r.max_tokens]) for row, r in zip(rows, requests, strict=True)]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured_row(model: Any, case: str, rows: int) -> dict[str, object]:
    requests = case_requests(case, rows)
    mine, theirs = ours(model, requests), generate(model, requests)
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    # Left padding moves generate's last bits, so a near-tie may fall the other way.
    if same < 0.95 * rows:
        raise SystemExit(f"{case}, {rows} rows: greedy tokens agree in {same} rows only")
    ours_s, peer_s = [], []
    for _ in range(ALTERNATIONS):
        ours_s.append(seconds(lambda: ours(model, requests)))
        peer_s.append(seconds(lambda: generate(model, requests)))
    a, b = statistics.median(ours_s), statistics.median(peer_s)
    tokens = sum(r.max_tokens for r in requests)
    note = f"{tokens / a:.0f} against {tokens / b:.0f} tokens/s; {same} of {rows} rows equal"
    print(f"{case:9s} {rows:4d} rows: {a:.2f} s against {b:.2f} s; {note}", flush=True)
    return {
        "case": f"{case}, {rows} rows",
        "peer": "transformers generate",
        "ours_s": round(a, 4),
        "peer_s": round(b, 4),
        "ratio": round(b / a, 2),
        "spread": {
            "ours_s": [round(min(ours_s), 4), round(max(ours_s), 4)],
            "peer_s": [round(min(peer_s), 4), round(max(peer_s), 4)],
        },
        "note": note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    model = benchmark_model()
    rows = [
        measured_row(model, case, n)
        for case in ("uniform", "ragged", "siblings")
        for n in (16, 64, 128)
    ]
    save("sampler", rows)


if __name__ == "__main__":
    main()
